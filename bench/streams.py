"""The client of the benchmarks: streams over OpenAI's HTTP, timed chunk by chunk.

Bare sockets, since it runs on the cores of what it measures: httpx took as much of them for a token
as the whole server.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 600


class RefusedError(Exception):
    """The server answered with an error; the message is all that it said."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a model is asked for."""

    url: str
    model: str
    key: str | None = None
    more: Mapping[str, object] = field(default_factory=dict)  # in the body of each request

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80


@dataclass(slots=True)
class Stream:
    """One answer. Times are seconds of `time.perf_counter`."""

    started: float
    # Of each token. llama.cpp sends no part of a character: those that it held back are in none.
    arrivals: list[float] = field(default_factory=list)
    version: str | None = None  # what the server says that it served
    tokens: int = 0  # that the server has counted, as it says at the end
    ended: float = 0.0

    @property
    def first_token(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> Iterator[float]:
        return (later - earlier for earlier, later in itertools.pairwise(self.arrivals))


async def stream(
    door: Door, prompt: Sequence[int], tokens: int, under_way: list[Stream] | None = None
) -> Stream:
    """Asks for exactly `tokens` tokens, greedily. Raises RefusedError.

    The answer is in `under_way` from its beginning.
    """
    body = {
        "model": door.model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **door.more,
    }
    answer = Stream(time.perf_counter())
    if under_way is not None:
        under_way.append(answer)
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(door.host, door.port)
        try:
            writer.write(_request(door, json.dumps(body).encode()))
            await _read(reader, answer)
        finally:
            writer.close()
    return answer


def _request(door: Door, body: bytes) -> bytes:
    key = f"authorization: Bearer {door.key}\r\n" if door.key else ""
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {door.host}:{door.port}\r\n{key}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    )
    return f"{head}\r\n\r\n".encode() + body


async def _read(reader: asyncio.StreamReader, answer: Stream) -> None:
    status = await reader.readline()
    if b" 200 " not in status:
        raise RefusedError((status + await reader.read()).decode())
    async for line in reader:
        # Lines between are the lengths of chunks; each server sends an event in a chunk of its own.
        if line.startswith(b"data: {"):
            now = time.perf_counter()
            event = json.loads(line[6:])
            if usage := event.get("usage"):  # of no token: the last event
                answer.tokens, answer.ended = usage["completion_tokens"], now
            elif event["choices"]:
                answer.arrivals.append(now)
        elif line.lower().startswith(b"x-loragate-adapter:"):
            answer.version = line.split(b":", 1)[1].strip().decode()


async def closed_loop(
    doors: Sequence[Door],
    streams: int,
    rounds: int,
    prompt_tokens: int,
    tokens: int,
    seed: int,
) -> list[Stream]:
    """`streams` at once, each asking again as soon as it is answered, `rounds` times."""

    async def one(index: int) -> list[Stream]:
        draw = random.Random(f"{seed} {index}")
        prompts = (
            [draw.randrange(100, 40000) for _ in range(prompt_tokens)] for _ in range(rounds)
        )
        return [await stream(doors[index % len(doors)], p, tokens) for p in prompts]

    return [
        answer for answers in await asyncio.gather(*map(one, range(streams))) for answer in answers
    ]


def rate(answers: Sequence[Stream]) -> float:
    """Tokens per second over the whole of it."""
    tokens = sum(answer.tokens for answer in answers)
    begin = min(answer.started for answer in answers)
    return tokens / (max(answer.ended for answer in answers) - begin)
