"""A cold adapter beside a hot one: how long its requests wait, first come first served and fairly.

Fifteen streams of the hot adapter in a closed loop, and one request a second for the cold one, over
HTTP to a whole server around an engine of a fixed pace. `python -m bench.starvation` prints a
table; it needs the prepared default model (`loragate model prepare`), for its tokenizer.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench.adapters import make_adapter
from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.admission.fair_queue import FairQueue, QueueBounds, QueueGrant
from loragate.server.app.build import MakeQueue, build, fair_queue
from loragate.server.app.server import Server
from loragate.server.config import Config, EngineConfig, LimitsConfig, ServerConfig
from loragate.server.core import ChatRequest, Delta, Route, TokenLogprob
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter, ServedModel, ToolSession

STREAMS = 15
SEQUENCES = 16  # that the engine computes at once
STEP_SECONDS = 0.02
LOAD_SECONDS = 0.05
HOT_TOKENS = (32, 96)  # an answer's length is drawn from between
COLD_TOKENS = 16
PATIENCE_SECONDS = 15.0


@dataclass(eq=False)
class Running:
    """A request in the engine."""

    adapter: LoadedAdapter | None
    left: int
    tokens: asyncio.Queue[Delta] = field(default_factory=asyncio.Queue)


class PacedEngine:
    """One token a step for each running sequence; at most `max_loras` adapters run at once, and
    whoever would be one more is passed over, as vLLM's scheduler does.
    """

    is_alive = True
    retry_after_seconds = 1.0
    memory_bytes = 0

    def __init__(self, base: BaseModel, config: EngineConfig) -> None:
        self.model = ServedModel(base.name, 2048, 49152, 5, config.max_loras, config.max_lora_rank)
        self._waiting: list[Running] = []
        self._running: list[Running] = []

    @asynccontextmanager
    async def started(self) -> AsyncIterator["PacedEngine"]:
        task = asyncio.create_task(self._step_forever())
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.sampling.prompt_logprobs is not None:
            yield _scored(request)
            return
        sequence = Running(request.adapter, request.sampling.max_tokens or 1)
        self._waiting.append(sequence)
        try:
            while True:
                delta = await sequence.tokens.get()
                yield delta
                if delta.finish_reason:
                    return
        finally:
            for where in (self._waiting, self._running):
                if sequence in where:
                    where.remove(sequence)

    async def load(self, adapter: LoadedAdapter) -> None:
        await asyncio.sleep(LOAD_SECONDS)

    async def unload(self, adapter: LoadedAdapter) -> None:
        pass

    async def check_slots(self) -> None:
        pass

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> ToolSession:
        raise NotImplementedError

    def reasoning(self, template_kwargs: object, prompt_ids: object) -> None:
        return None

    async def _step_forever(self) -> None:
        due = time.perf_counter()
        while True:
            due += STEP_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._schedule()
            for sequence in tuple(self._running):
                sequence.left -= 1
                reason = None if sequence.left else "length"
                if reason:
                    self._running.remove(sequence)
                delta = Delta(index=0, text=" t", token_ids=(1,), finish_reason=reason)
                sequence.tokens.put_nowait(delta)

    def _schedule(self) -> None:
        for sequence in tuple(self._waiting):
            adapters = {_lora_id(running) for running in (*self._running, sequence)} - {0}
            if len(self._running) < SEQUENCES and len(adapters) <= self.model.max_loras:
                self._waiting.remove(sequence)
                self._running.append(sequence)


def _lora_id(sequence: Running) -> int:
    return sequence.adapter.version.lora_id if sequence.adapter else 0


def _scored(request: EngineRequest) -> Delta:
    logprob = -2.0 if request.adapter else -1.0  # an adapter that has an effect
    scores = [TokenLogprob("", token_id, logprob) for token_id in request.prompt_ids[1:]]
    return Delta(index=0, prompt_logprobs=(None, *scores), finish_reason="length")


class FifoTurn(QueueGrant):
    """A permit, and a claim on the adapter's slot, both until the request ends."""

    def __init__(self, queue: "FifoQueue", route: Route) -> None:
        self._fifo = queue
        self._route = route

    def charge(self, tokens: int) -> None:
        """First come, first served keeps no accounts."""

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[int]:
        yield 0  # the benchmark's requests have one sequence each

    def end(self) -> None:
        self._fifo.leave(self._route)


class FifoQueue(FairQueue):
    """What a fair queue is compared with: permits first come, first served, and held while a slot
    is
    waited for; a slot stays with its adapter as long as anybody asks for that.
    """

    def __init__(self, permits: int, slots: int, bounds: QueueBounds) -> None:
        super().__init__(permits=permits, slots=slots, bounds=bounds, turn_seconds=0.0)
        self._line: deque[asyncio.Future[None]] = deque()

    async def take(self, route: Route, prompt_tokens: int) -> QueueGrant:
        if self.in_flight >= self._permits:
            turn = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            await turn
        else:
            self.in_flight += 1
        if route.version is not None:
            try:
                await self.acquire_slot(route.version)
            except BaseException:
                self._pass_place()
                raise
        return FifoTurn(self, route)

    def leave(self, route: Route) -> None:
        if route.version is not None:
            self.release_slot(route.version)
        self._pass_place()

    def _pass_place(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1


def fifo_queue(config: Config, is_shared: Callable[[], bool]) -> FairQueue:
    limits = config.limits
    bounds = QueueBounds(
        limits.max_queued, limits.max_queued_per_adapter, limits.queue_timeout_seconds
    )
    return FifoQueue(limits.max_in_flight, config.engine.max_loras, bounds)


@dataclass
class Outcome:
    """Seconds to the first token of each cold request, refused ones with what they waited."""

    ttft_seconds: list[float] = field(default_factory=list)
    refused: int = 0
    hot_tokens: int = 0


class Load:
    """The two tenants' clients; `keys` by tenant."""

    def __init__(self, url: str, keys: dict[str, str], seconds: float) -> None:
        self._url = url
        self._keys = keys
        self._seconds = seconds
        self._outcome = Outcome()
        self._random = random.Random(0)

    async def run(self) -> Outcome:
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            hot = [asyncio.create_task(self._hot(client)) for _ in range(STREAMS)]
            await asyncio.sleep(2)  # the hot adapter is loaded, and its streams are out of step
            self._outcome.hot_tokens = 0
            cold: list[asyncio.Task[None]] = []
            for _ in range(int(self._seconds)):
                cold.append(asyncio.create_task(self._cold(client)))
                await asyncio.sleep(1)
            tokens = self._outcome.hot_tokens
            await asyncio.gather(*cold)
            self._outcome.hot_tokens = tokens
            for task in hot:
                task.cancel()
            await asyncio.gather(*hot, return_exceptions=True)
        return self._outcome

    async def _hot(self, client: httpx.AsyncClient) -> None:
        while True:
            async for _ in self._stream(client, "acme", self._random.randint(*HOT_TOKENS)):
                self._outcome.hot_tokens += 1

    async def _cold(self, client: httpx.AsyncClient) -> None:
        started = time.perf_counter()
        waited = 0.0
        async for _ in self._stream(client, "globex", COLD_TOKENS):
            waited = waited or time.perf_counter() - started
        if not waited:
            self._outcome.refused += 1
        self._outcome.ttft_seconds.append(waited or time.perf_counter() - started)

    async def _stream(
        self, client: httpx.AsyncClient, tenant: str, tokens: int
    ) -> AsyncIterator[None]:
        """Once for each token; nothing where the request is refused."""
        body = {
            "model": "bot",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": tokens,
            "stream": True,
        }
        headers = {"authorization": f"Bearer {self._keys[tenant]}"}
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            async for line in answer.aiter_lines():
                if answer.is_success and '" t"' in line:
                    yield


@asynccontextmanager
async def serving(
    base: BaseModel, max_loras: int, make_queue: MakeQueue
) -> AsyncIterator[tuple[Server, dict[str, str]]]:
    """A server with two tenants whose adapters, both named `bot`, serve."""
    config = Config(
        server=ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0"),
        engine=EngineConfig(max_loras=max_loras),
        limits=LimitsConfig(queue_timeout_seconds=PATIENCE_SECONDS),
    )
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).ensure()
        with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
            keys = {}
            for seed, tenant in enumerate(("acme", "globex")):
                keys[tenant] = registry.tenants.create(tenant).key
                bot = AdapterName(tenant, "bot")
                # Without a manifest: this engine's scores are nobody's reference.
                weights = make_adapter(Path(folder) / tenant, base.path, seed)
                version = registry.versions.publish(bot, weights)
                registry.aliases.set(bot, "champion", version.number)
            start = PacedEngine(base, config.engine).started
            async with build(config, home, base, start, make_queue) as server:
                async with asyncio.timeout(30):
                    # The registry has no event.
                    while any(  # noqa: ASYNC110
                        target.serving is None for target in registry.snapshot().desired_aliases()
                    ):
                        await asyncio.sleep(0.05)
                async with server.listening():
                    yield server, keys


async def measure(
    base: BaseModel, max_loras: int, make_queue: MakeQueue, seconds: float
) -> Outcome:
    async with serving(base, max_loras, make_queue) as (server, keys):
        return await Load(f"http://127.0.0.1:{server.http_port}", keys, seconds).run()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of cold requests, one a second"
    )
    seconds: float = parser.parse_args().seconds
    base = find(EngineConfig().model, Home.from_environment().models)
    table = Table(
        *("max_loras", "Queue", "Cold TTFT p50", "p99", "Cold refused", "Hot tokens/s"),
        title=f"{STREAMS} hot streams, 1 cold request a second for {seconds:g} s",
    )
    for max_loras in (1, 2):
        for name, make_queue in (("first come", fifo_queue), ("fair", fair_queue)):
            outcome = asyncio.run(measure(base, max_loras, make_queue, seconds))
            ttft = outcome.ttft_seconds
            table.add_row(
                str(max_loras),
                name,
                f"{percentile(ttft, 0.5):.2f} s",
                f"{percentile(ttft, 0.99):.2f} s",
                f"{outcome.refused} of {len(ttft)}",
                f"{outcome.hot_tokens / seconds:.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
