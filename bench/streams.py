"""The client of the benchmarks: streams over OpenAI's HTTP, timed chunk by chunk.

Small on purpose, since it runs on the cores of what it measures.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx


@dataclass(frozen=True, slots=True)
class Door:
    """Where a model is asked for."""

    url: str
    model: str
    key: str | None = None


@dataclass(slots=True)
class Stream:
    """One answer. Times are seconds of `time.perf_counter`."""

    started: float
    arrivals: list[float] = field(default_factory=list)  # of each token
    version: str | None = None  # what the server says that it served

    @property
    def first_token(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> Iterator[float]:
        return (later - earlier for earlier, later in itertools.pairwise(self.arrivals))


def client() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
    return httpx.AsyncClient(timeout=600, limits=limits)


async def stream(
    http: httpx.AsyncClient,
    door: Door,
    prompt: Sequence[int],
    tokens: int,
    under_way: list[Stream] | None = None,
) -> Stream:
    """Asks for exactly `tokens` tokens, greedily. Raises httpx.HTTPStatusError.

    The answer is in `under_way` from its beginning.
    """
    body = {
        "model": door.model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {door.key}"} if door.key else {}
    answer = Stream(time.perf_counter())
    if under_way is not None:
        under_way.append(answer)
    request = http.build_request("POST", f"{door.url}/v1/completions", json=body, headers=headers)
    response = await http.send(request, stream=True)
    try:
        if response.is_error:
            await response.aread()
            raise httpx.HTTPStatusError(response.text, request=request, response=response)
        answer.version = response.headers.get("x-loragate-adapter")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                now = time.perf_counter()
                if json.loads(line[6:])["choices"]:
                    answer.arrivals.append(now)
    finally:
        await response.aclose()
    return answer


async def closed_loop(
    http: httpx.AsyncClient,
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
        return [await stream(http, doors[index % len(doors)], p, tokens) for p in prompts]

    return [
        answer for answers in await asyncio.gather(*map(one, range(streams))) for answer in answers
    ]


def rate(answers: Sequence[Stream]) -> float:
    """Tokens per second over the whole of it."""
    tokens = sum(len(answer.arrivals) for answer in answers)
    begin = min(answer.started for answer in answers)
    return tokens / (max(answer.arrivals[-1] for answer in answers) - begin)
