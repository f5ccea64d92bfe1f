"""What one server process can carry without an engine to wait for: `make bench-frontend`.

The server is loragate whole, over HTTP and gRPC, around an engine that emits a token for each
stream at a fixed pace and computes nothing. The streams together ask for more than it can carry;
what arrives, and the server's own CPU time for each token, are what the front end costs. The client
is a process of its own and counts tokens without decoding them.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import uvloop

from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.app.build import build
from loragate.server.config import Config, EngineConfig, LimitsConfig, ServerConfig
from loragate.server.core import ChatRequest, Delta, TokenLogprob
from loragate.server.engine.protocol import (
    Engine,
    EngineRequest,
    LoadedAdapter,
    ServedModel,
    ToolSession,
)
from loragate.v1 import inference_pb2

PACE_SECONDS = 0.01
TOKENS = 100_000  # of an answer: more than it can get
PROMPT = list(range(100, 132))


class Connection(Protocol):
    """An end of a pipe between the two processes."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...
    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Carried:
    """By one protocol with so many streams."""

    tokens_per_second: float
    cpu_us_per_token: float


class EmittingEngine:
    """Emits a token for each stream every `PACE_SECONDS`, or as often as it is asked."""

    is_alive = True
    retry_after_seconds = 1.0
    memory_bytes = 0

    def __init__(self, base: BaseModel) -> None:
        self.model = ServedModel(base.name, 2 * TOKENS, 49152, 5, 1, 16)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.sampling.prompt_logprobs is not None:  # the server's own probe of the model
            scores = tuple(TokenLogprob("", each, -1.0) for each in request.prompt_ids)
            yield Delta(index=0, prompt_logprobs=scores, finish_reason="length")
            return
        due = time.perf_counter()
        for _ in range(TOKENS):
            due += PACE_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            yield Delta(index=0, text=" token", token_ids=(1,))

    async def load(self, adapter: LoadedAdapter) -> None: ...

    async def unload(self, adapter: LoadedAdapter) -> None: ...

    async def check_slots(self) -> None: ...

    def tools(self, request: ChatRequest, prompt_ids: object) -> ToolSession:
        raise NotImplementedError

    def reasoning(self, template_kwargs: object, prompt_ids: object) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=6, help="a case (default 6)")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = multiprocessing.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    doors: dict[str, str] = ours.recv()
    print(f"pace {1 / PACE_SECONDS:.0f} tokens/s a stream\n")
    print("| streams | asked for | HTTP, tokens/s | CPU a token | gRPC, tokens/s | CPU a token |")
    print("|---|---|---|---|---|---|")
    for count in options.streams:
        shown = [f"{count}", f"{count / PACE_SECONDS:.0f}"]
        for client in (_count_http, _count_grpc):
            carried = asyncio.run(_carry(client, doors, count, options.seconds, ours))
            shown += [f"{carried.tokens_per_second:.0f}", f"{carried.cpu_us_per_token:.0f} µs"]
        print(f"| {' | '.join(shown)} |", flush=True)
    server.terminate()


async def _carry(
    client: "Client", doors: dict[str, str], count: int, seconds: float, server: Connection
) -> Carried:
    received = [0]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(doors, received)) for _ in range(count)]
        await asyncio.sleep(2)  # until all have begun
        before, cpu, began = received[0], _cpu_seconds(server), time.perf_counter()
        await asyncio.sleep(seconds)
        tokens, spent = received[0] - before, _cpu_seconds(server) - cpu
        elapsed = time.perf_counter() - began
        for task in tasks:
            task.cancel()
    return Carried(tokens / elapsed, spent / tokens * 1e6)


def _cpu_seconds(server: Connection) -> float:
    server.send(None)
    seconds: float = server.recv()
    return seconds


async def _count_http(doors: dict[str, str], received: list[int]) -> None:
    host, _, port = doors["http"].rpartition(":")
    body = json.dumps(
        {"model": "base", "prompt": PROMPT, "max_tokens": TOKENS, "stream": True}
    ).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        + f"authorization: Bearer {doors['key']}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    try:
        while chunk := await reader.read(1 << 16):
            received[0] += chunk.count(b"data: {")
    finally:
        writer.close()


async def _count_grpc(doors: dict[str, str], received: list[int]) -> None:
    async with grpc.aio.insecure_channel(doors["grpc"]) as channel:
        request = inference_pb2.CompletionRequest(
            model="base",
            prompts=[inference_pb2.Prompt(token_ids=inference_pb2.TokenIds(ids=PROMPT))],
            sampling=inference_pb2.SamplingParams(max_tokens=TOKENS),
        ).SerializeToString()
        ask = channel.unary_stream("/loragate.v1.Inference/CompleteStream")
        async for _ in ask(request, metadata=[("authorization", f"Bearer {doors['key']}")]):
            received[0] += 1


Client = Callable[[dict[str, str], list[int]], Coroutine[None, None, None]]


def _serve(parent: Connection) -> None:
    uvloop.run(_run(parent))


async def _run(parent: Connection) -> None:
    async with served_by(EmittingEngine) as doors:
        parent.send(doors)
        asyncio.get_running_loop().add_reader(parent.fileno(), _answer, parent)
        await asyncio.Event().wait()


@asynccontextmanager
async def served_by(make_engine: Callable[[BaseModel], Engine]) -> AsyncIterator[dict[str, str]]:
    """The whole server around such an engine: addresses by protocol, and a tenant's key."""
    config = Config(
        server=ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0", log_level="error"),
        engine=EngineConfig(max_num_seqs=1024),
        limits=LimitsConfig(max_in_flight=1024),
    )
    base = find(EngineConfig().model, Home.from_environment().models)
    with tempfile.TemporaryDirectory(prefix="bench-frontend-") as folder:
        home = Home(Path(folder)).ensure()
        with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
            key = registry.tenants.create("bench").key
        engine = make_engine(base)

        @asynccontextmanager
        async def start() -> AsyncIterator[Engine]:
            yield engine

        async with build(config, home, base, start) as server, server.listening():
            yield {
                "http": f"127.0.0.1:{server.http_port}",
                "grpc": f"127.0.0.1:{server.grpc_port}",
                "key": key,
            }


def _answer(parent: Connection) -> None:
    try:
        parent.recv()
    except EOFError:
        raise SystemExit from None
    parent.send(time.process_time())


if __name__ == "__main__":
    main()
