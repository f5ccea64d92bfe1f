"""What one request of a few megabytes, made to cost much, costs the others: `make bench-bombs`.

Each bomb is sent once, by a tenant with a good key or by nobody. Meanwhile `/livez` is asked twenty
times a second, and a stream of another tenant runs: printed are how the bomb was answered and when,
the longest that `/livez` took, the stream's 99th percentile and longest time between two tokens,
and the server's memory before it and two seconds after it. `--checkout` measures another version of
the project, in which some of these take minutes.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.adapters import make_adapter
from bench.servers import Running, loragate, model_path
from bench.streams import Stream, stream
from loragate.v1 import inference_pb2 as pb

MIB = 2**20
_LOOK_SECONDS = 0.05
_MOST_SECONDS = 300.0
_AFTER_SECONDS = 1.0  # that the others are watched for after the answer


@dataclass(frozen=True, slots=True)
class Bomb:
    """`make` gives its bytes, about as many as asked for. `answers` are the statuses that it may
    get, in the words of its transport.
    """

    name: str
    path: str
    make: Callable[[int], bytes]
    answers: frozenset[str]
    has_key: bool = True
    headers: Callable[[int], bytes] = lambda size: b""

    @property
    def is_grpc(self) -> bool:
        return self.path.startswith("/loragate.")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send them, and the key of a tenant."""

    host: str
    http_port: int
    grpc_port: int
    key: str


@dataclass(slots=True)
class Watch:
    """How much later than it was due an answer of `/livez` came at most."""

    worst: float = 0.0
    answered: int = 0


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GRPC_CHAT = "/loragate.v1.Inference/Chat"
GRPC_COMPLETE = "/loragate.v1.Inference/Complete"
_MESSAGE = {"role": "user", "content": "hi"}
_BAD, _ANY = frozenset({"400"}), frozenset({"200", "400", "413"})
_BAD_CALL = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})


def _repeated(piece: bytes, size: int, around: tuple[bytes, bytes]) -> bytes:
    count = max(1, (size - 200) // len(piece))
    return around[0] + (piece * count).removesuffix(b",") + around[1]


def _completion(field: str, piece: bytes, **more: object) -> Callable[[int], bytes]:
    """A body in which a list of `piece` takes most of the bytes."""
    head = json.dumps({"model": "base", **more})[:-1].encode()
    around = (head + b',"%s":[' % field.encode(), b"]}")
    return lambda size: _repeated(piece + b",", size, around)


def _chat(field: str, piece: bytes, **more: object) -> Callable[[int], bytes]:
    return _completion(field, piece, max_tokens=1, **more)


def _chat_with(make: Callable[[str], dict[str, object]]) -> Callable[[int], bytes]:
    """A chat in which one long text takes most of the bytes."""
    body = {"model": "base", "max_tokens": 1, "messages": [_MESSAGE]}
    return lambda size: json.dumps({**body, **make("word " * (size // 5))}).encode()


def _tool(description: str = "", parameters: object = None) -> dict[str, object]:
    function = {"name": "f", "description": description, "parameters": parameters or {}}
    return {"type": "function", "function": function}


def _called(text: str) -> dict[str, object]:
    arguments = json.dumps({"text": text})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "tool_calls": [call]}
    return {"messages": [_MESSAGE, turn, {"role": "tool", "content": "", "tool_call_id": "1"}]}


def _unknown_fields(size: int) -> bytes:
    names = b",".join(b'"x%07d":1' % i for i in range(max(1, size // 13)))
    return b'{"model":"base","messages":[],' + names + b"}"


def _biases(size: int) -> bytes:
    biases = b",".join(b'"%07d":true' % i for i in range(1, max(2, size // 15)))
    return b'{"model":"base","messages":[],"logit_bias":{' + biases + b"}}"


def _fields(tag: bytes, piece: bytes = b"\x00") -> Callable[[int], bytes]:
    return lambda size: (tag + piece) * (size // len(tag + piece))


def _one_message_s_calls(size: int) -> bytes:
    calls = b"\x22\x00" * (size // 2)
    return (
        pb.ChatRequest(
            model="base", messages=[pb.Message.FromString(b"\x0a\x04user")]
        ).SerializeToString()
        + b"\x12"
        + _varint(len(calls))
        + calls
    )


def _template_list(size: int) -> bytes:
    """`template_kwargs` with one list of nothing but nulls."""
    values = b"\x0a\x00" * (size // 2)
    value = b"\x32" + _varint(len(values)) + values
    entry = b"\x0a\x01a\x12" + _varint(len(value)) + value
    struct = b"\x0a" + _varint(len(entry)) + entry
    return b"\x5a" + _varint(len(struct)) + struct


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


BOMBS = (
    # Half a million of the wrong thing: each was described at length.
    Bomb("list of true as prompt", COMPLETIONS, _completion("prompt", b"true"), _BAD),
    Bomb("list of numbers as messages", CHAT, _chat("messages", b"1"), _BAD),
    Bomb("unknown fields", CHAT, _unknown_fields, _BAD),
    Bomb("logit_bias of true", CHAT, _biases, _BAD),
    # Bytes that become a hundred times as many.
    Bomb("nested lists", CHAT, lambda size: b"[" * size, _BAD),
    Bomb("empty lists", CHAT, _chat("documents", b"[]", messages=[_MESSAGE]), _BAD),
    Bomb("empty objects", CHAT, _chat("documents", b"{}", messages=[_MESSAGE]), _BAD),
    Bomb("short strings", CHAT, _chat("stop", b'""', messages=[_MESSAGE]), _BAD),
    Bomb("token ids", COMPLETIONS, _completion("prompt", b"1"), _BAD),
    # What is rendered and tokenized.
    Bomb("empty messages", CHAT, _chat("messages", b'{"role":"user","content":""}'), _BAD),
    Bomb("long prompt", COMPLETIONS, lambda size: json.dumps(
        {"model": "base", "prompt": "word " * (size // 5)}).encode(), _BAD),
    Bomb("long prompt to be truncated", COMPLETIONS, lambda size: json.dumps(
        {"model": "base", "prompt": "7 " * (size // 2), "truncate_prompt_tokens": 9,
         "max_tokens": 1}).encode(), _ANY),
    Bomb("long tool description", CHAT, _chat_with(lambda text: {"tools": [_tool(text)]}), _BAD),
    Bomb("long tool schema", CHAT, _chat_with(
        lambda text: {"tools": [_tool(parameters={"a": text})]}), _BAD),
    Bomb("long tool call", CHAT, _chat_with(_called), _ANY),
    Bomb("long document", CHAT, _chat_with(lambda text: {"documents": [{"text": text}]}), _ANY),
    Bomb("long template variable", CHAT, _chat_with(
        lambda text: {"chat_template_kwargs": {"a": text}}), _ANY),
    Bomb("long bad word", CHAT, _chat_with(lambda text: {"bad_words": [text]}), _BAD),
    Bomb("scores of many prompts", COMPLETIONS, lambda size: json.dumps(
        {"model": "base", "prompt": [[7] * 2000] * 60, "max_tokens": 1, "prompt_logprobs": 20}
    ).encode(), _BAD),
    # Of nobody: there is no key.
    Bomb("nested lists without a key", CHAT, lambda size: b"[" * size, frozenset({"401"}), False),
    Bomb("20,000 headers", "/livez", lambda size: b"", frozenset({"431"}), False,
         headers=lambda size: b"".join(b"x-%d: 1\r\n" % i for i in range(size // 200))),
    Bomb("gRPC, empty messages without a key", GRPC_CHAT, _fields(b"\x12"),
         frozenset({"UNAUTHENTICATED"}), False),
    # The same over gRPC.
    Bomb("gRPC, empty messages", GRPC_CHAT, _fields(b"\x12"), _BAD_CALL),
    Bomb("gRPC, empty prompts", GRPC_COMPLETE, _fields(b"\x12"), _BAD_CALL),
    Bomb("gRPC, empty tools", GRPC_CHAT, _fields(b"\x2a"), _BAD_CALL),
    Bomb("gRPC, one message's calls", GRPC_CHAT, _one_message_s_calls, _BAD_CALL),
    Bomb("gRPC, template variables", GRPC_CHAT, _template_list, _BAD_CALL),
    Bomb("gRPC, unknown fields", GRPC_CHAT, _fields(b"\xf8\x3f", b"\x01"), _BAD_CALL),
    Bomb("gRPC, token ids", GRPC_COMPLETE, lambda size: pb.CompletionRequest(
        model="base", prompts=[pb.Prompt(token_ids=pb.TokenIds(ids=[1] * (size - 100)))]
    ).SerializeToString(), _BAD_CALL),
    Bomb("gRPC, long prompt", GRPC_COMPLETE, lambda size: pb.CompletionRequest(
        model="base", prompts=[pb.Prompt(text="word " * (size // 5 - 20))]
    ).SerializeToString(), _BAD_CALL),
)  # fmt: skip


async def throw(bomb: Bomb, target: Target, payload: bytes, size: int) -> str:
    """Sends it and returns the status, or the kind of error where there was no answer."""
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            if bomb.is_grpc:
                return await _throw_call(bomb, target, payload)
            return await _throw_request(bomb, target, payload, size)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return type(error).__name__


async def _throw_request(bomb: Bomb, target: Target, payload: bytes, size: int) -> str:
    reader, writer = await asyncio.open_connection(target.host, target.http_port)
    key = f"authorization: Bearer {target.key}\r\n" if bomb.has_key else ""
    method = "POST" if payload else "GET"
    head = (
        f"{method} {bomb.path} HTTP/1.1\r\nhost: x\r\n{key}content-type: application/json\r\n"
        f"content-length: {len(payload)}\r\n"
    ).encode()
    try:
        writer.write(head + bomb.headers(size) + b"\r\n" + payload)
        status = (await reader.readuntil(b"\r\n")).split(b" ")[1].decode()
    finally:
        writer.close()
    return status


async def _throw_call(bomb: Bomb, target: Target, payload: bytes) -> str:
    metadata = [("authorization", f"Bearer {target.key}")] if bomb.has_key else []
    async with grpc.aio.insecure_channel(f"{target.host}:{target.grpc_port}") as channel:
        call = channel.unary_unary(bomb.path)(payload, metadata=metadata)
        with suppress(grpc.aio.AioRpcError):
            await call
        return (await call.code()).name


@asynccontextmanager
async def watching(target: Target) -> AsyncIterator[Watch]:
    """Asks `/livez` all the time, and once more at the end."""
    watch = Watch()
    task = asyncio.create_task(_ask(target, watch))
    try:
        await _once_more(watch, task)
        yield watch
        await _once_more(watch, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _once_more(watch: Watch, asking: asyncio.Task[None]) -> None:
    answered = watch.answered
    async with asyncio.timeout(_MOST_SECONDS):
        while watch.answered == answered and not asking.done():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS / 10)


async def _ask(target: Target, watch: Watch) -> None:
    reader, writer = await asyncio.open_connection(target.host, target.http_port)
    due = time.perf_counter()
    try:
        while True:
            writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            now = time.perf_counter()
            # From when it was due: a server in the asker's own process keeps it from asking.
            watch.worst = max(watch.worst, now - due)
            watch.answered += 1
            due = now + _LOOK_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        writer.close()


# ---- the benchmark


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mib", type=float, default=4, help="of a bomb at most (default 4)")
    parser.add_argument("--only", help="those with this in their name")
    parser.add_argument("--checkout", type=Path, help="another version of the project")
    options = parser.parse_args()
    size = int(options.mib * MIB) - 1000
    chosen = [bomb for bomb in BOMBS if not options.only or options.only in bomb.name]
    asyncio.run(_measure(chosen, size, options.checkout))


async def _measure(bombs: Sequence[Bomb], size: int, checkout: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        other = make_adapter(Path(folder) / "other", model_path(), 1)
        async with loragate({"other": other}, "float32", checkout=checkout) as server:
            host, _, grpc_port = server.grpc.rpartition(":")
            base = server.doors["base"]
            target = Target(host, base.port, int(grpc_port), base.key or "")
            calm = await _others(server, asyncio.sleep(5, "-"))
            print(f"alone: {_told(calm)}\n")
            print(
                "| bomb | answer | after | /livez at most | tokens, p99 and longest gap | memory |"
            )
            print("|---|---|---|---|---|---|")
            for bomb in bombs:
                await _print(bomb, server, target, size)


async def _print(bomb: Bomb, server: Running, target: Target, size: int) -> None:
    payload = bomb.make(size)
    before = await asyncio.to_thread(server.memory_mib)
    began = time.perf_counter()
    async with watching(target) as watch:
        status, gaps = await _others(server, throw(bomb, target, payload, size))
        seconds = time.perf_counter() - began - _AFTER_SECONDS
    await asyncio.sleep(2)
    after = await asyncio.to_thread(server.memory_mib)
    mark = "" if status in bomb.answers else " (!)"
    print(
        f"| {bomb.name} | {status}{mark} | {seconds:.2f} s | {watch.worst:.2f} s "
        f"| {_told((status, gaps))} | {before:.0f} → {after:.0f} MiB |",
        flush=True,
    )


async def _others(server: Running, work: Awaitable[str]) -> tuple[str, list[float]]:
    """Runs `work` beside a stream of another tenant; the times between that stream's tokens."""
    under_way: list[Stream] = []
    streaming = asyncio.create_task(stream(server.doors["other"], range(100, 132), 1500, under_way))
    while not (under_way and len(under_way[0].arrivals) > 2):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    began = time.perf_counter()
    status = await work
    await asyncio.sleep(_AFTER_SECONDS)
    streaming.cancel()
    await asyncio.gather(streaming, return_exceptions=True)
    arrivals = [at for at in under_way[0].arrivals if at >= began]
    ends = [began, *arrivals, time.perf_counter()]
    return status, [later - earlier for earlier, later in itertools.pairwise(ends)]


def _told(measured: tuple[str, list[float]]) -> str:
    _, gaps = measured
    if len(gaps) < 2:
        return f"none for {sum(gaps):.2f} s"
    p99 = statistics.quantiles(gaps, n=100)[98]
    return f"{p99 * 1000:.0f} ms, {max(gaps):.2f} s"


if __name__ == "__main__":
    main()
