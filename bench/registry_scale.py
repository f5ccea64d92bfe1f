"""What a large registry costs the server's event loop: `make bench-registry`.

A server whole, around an engine that computes nothing, on a registry of 200 tenants with 50
adapters of five versions each. Measured is the processor time of the event loop's thread alone: a
registry change, from the moment at which it is written until all is quiet again, less what the same
time takes without one; and a scrape of /metrics with as many adapters as it keeps.

Nothing but the server's own packages is looked up by this file, so that an older server can be
measured beside: PYTHONPATH=OLD/server:OLD/adapters:OLD/proto python -m bench.registry_scale
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.adapters import make_adapter
from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import Limits, Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.app.build import build
from loragate.server.config import Config, EngineConfig, ServerConfig
from loragate.server.core import ChatRequest, Delta, Route, TokenLogprob
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter, ServedModel, ToolSession
from loragate.server.telemetry.metrics import Metrics
from loragate.server.telemetry.usage import Record

TENANTS = 200
VERSIONS = 5
QUIET_SECONDS = 1.5  # in which a change has been followed, as a rule in half a second
MANIFEST = json.dumps({"rank": 16, "alpha": 16, "target_modules": ["q_proj", "v_proj"]})
PROMOTED = AdapterName("bench", "promoted")
NOW = "2026-01-01 00:00:00.000000"


class IdleEngine:
    """Computes nothing; the gate's prompts score otherwise with an adapter than without."""

    is_alive = True
    retry_after_seconds = 1.0
    memory_bytes = 0

    def __init__(self, base: BaseModel) -> None:
        self.model = ServedModel(base.name, 2048, 49152, 5, 8, 16)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        logprob = -2.0 if request.adapter else -1.0
        scores = [TokenLogprob("", token_id, logprob) for token_id in request.prompt_ids[1:]]
        yield Delta(index=0, prompt_logprobs=(None, *scores), finish_reason="length")

    async def load(self, adapter: LoadedAdapter) -> None: ...

    async def unload(self, adapter: LoadedAdapter) -> None: ...

    async def check_slots(self) -> None: ...

    def tools(self, request: ChatRequest, prompt_ids: object) -> ToolSession:
        raise NotImplementedError

    def reasoning(self, template_kwargs: object, prompt_ids: object) -> None:
        return None


@dataclass
class LoopTime:
    """The processor time of callbacks, and the longest of them, in seconds."""

    spent: float = 0.0
    longest: float = 0.0

    def take(self) -> tuple[float, float]:
        """Both since the last time, in milliseconds."""
        taken = 1000 * self.spent, 1000 * self.longest
        self.spent = self.longest = 0.0
        return taken


@contextmanager
def timed_callbacks() -> Iterator[LoopTime]:
    """Of all event loops of this process; asyncio's own, since uvloop's callbacks are not seen."""
    clock, run = LoopTime(), asyncio.Handle._run

    def timed(self: asyncio.Handle) -> None:
        began = time.thread_time()
        run(self)
        spent = time.thread_time() - began
        clock.spent += spent
        clock.longest = max(clock.longest, spent)

    asyncio.Handle._run = timed
    try:
        yield clock
    finally:
        asyncio.Handle._run = run


def fill(url: str, adapters: int) -> None:
    """Rows without artifacts: nothing is loaded, since all aliases serve what they are to."""
    path = url.removeprefix("sqlite:///")
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            f"INSERT INTO tenants (id, created_at, revision) VALUES (?, '{NOW}', 1)",
            [(tenant,) for tenant in tenants],
        )
        connection.executemany(
            "INSERT INTO adapters (id, tenant_id, name, next_number, revision) "
            f"VALUES (?, ?, ?, {VERSIONS + 1}, 1)",
            [(i + 1, tenants[i % TENANTS], f"adapter-{i}") for i in range(adapters)],
        )
        connection.executemany(
            "INSERT INTO versions (adapter_id, number, digest, state, reason, retiring, manifest, "
            "size_bytes, created_at, revision) "
            f"VALUES (?, ?, '{'0' * 64}', 'PUBLISHED', '', 0, ?, 1, '{NOW}', 1)",
            [
                (adapter + 1, number, MANIFEST)
                for adapter in range(adapters)
                for number in range(1, VERSIONS + 1)
            ],
        )
        connection.execute(
            "INSERT INTO aliases (adapter_id, name, desired_id, serving_id, updated_at, "
            "desired_mode, serving_mode) SELECT adapter_id, 'champion', max(id), max(id), "
            f"'{NOW}', 'unmerged', 'unmerged' FROM versions GROUP BY adapter_id"
        )
        connection.execute("UPDATE revision SET value = 2")
        connection.commit()


@asynccontextmanager
async def serving(folder: Path, adapters: int) -> AsyncIterator[Registry]:
    """A server on such a registry; yields what changes it from beside."""
    base = find(EngineConfig().model, Home.from_environment().models)
    home = Home(folder).ensure()
    registry = Registry(home.database_url, ArtifactStore(home.artifacts))
    fill(home.database_url, adapters)
    registry.tenants.create(PROMOTED.tenant)
    for seed in (1, 2):
        registry.versions.publish(PROMOTED, make_adapter(folder / f"v{seed}", base.path, seed))

    @asynccontextmanager
    async def start() -> AsyncIterator[IdleEngine]:
        yield IdleEngine(base)

    config = Config(server=ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0", log_level="error"))
    with registry:
        async with build(config, home, base, start):
            yield registry


async def measure_changes(adapters: int, rounds: int) -> None:
    print(f"{adapters} adapters of {VERSIONS} versions, {TENANTS} tenants; ms of the event loop\n")
    print("| change | in all | longest callback |")
    print("|---|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="bench-registry-") as folder,
        timed_callbacks() as clock,
    ):
        async with serving(Path(folder), adapters) as registry:
            await asyncio.sleep(2 * QUIET_SECONDS)
            idle = []
            for _ in range(rounds):
                clock.take()
                await asyncio.sleep(QUIET_SECONDS)
                idle.append(clock.take()[0])
            quiet = statistics.median(idle)

            def limits(number: int) -> None:
                registry.tenants.set_limits("tenant-7", Limits(max_concurrent=number + 1))

            def retire(number: int) -> None:
                registry.states.retire(
                    AdapterName("tenant-7", f"adapter-{7 + TENANTS * number}"), 1
                )

            def promote(number: int) -> None:
                registry.aliases.set(PROMOTED, "champion", number % 2 + 1)

            for number in range(2):  # the first load of each reads and checks its files
                await asyncio.to_thread(promote, number)
                await asyncio.sleep(2 * QUIET_SECONDS)

            changes: dict[str, Callable[[int], None]] = {
                "a tenant's limits": limits,
                "a version retired": retire,
                "a promotion: six changes, a load and a drain": promote,
            }
            for name, change in changes.items():
                taken = []
                for number in range(rounds):
                    clock.take()
                    await asyncio.to_thread(change, number)
                    await asyncio.sleep(QUIET_SECONDS)
                    taken.append(clock.take())
                spent = statistics.median(each for each, _ in taken) - quiet
                longest = statistics.median(each for _, each in taken)
                print(f"| {name} | {max(0.0, spent):.1f} | {longest:.1f} |", flush=True)
    print(f"\nidle, in {QUIET_SECONDS} s: {quiet:.1f} ms\n")


def measure_scrapes(rounds: int) -> None:
    """At the cap, all adapters asked since the last scrape, and none."""
    metrics = Metrics(1000)
    asked, quiet = [], []
    for _ in range(rounds):
        _ask_all(metrics)
        asked.append(_scrape(metrics))
        quiet.append(_scrape(metrics))
    print("| scrape of 1,000 adapters | in all | longest piece |")
    print("|---|---|---|")
    for name, taken in (("all asked since the last", asked), ("none asked", quiet)):
        total, longest = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"| {name} | {total:.1f} | {longest:.1f} |")


def _ask_all(metrics: Metrics) -> None:
    for number in range(1000):
        version = AdapterVersion(f"tenant-{number % TENANTS}", f"a{number}", 1, "d", number)
        route = Route(version.tenant, version)
        for transport in ("http", "grpc"):
            record = Record("bench", route, transport)
            record.prompt_tokens, record.completion_tokens = 10, 5
            record.ttft_seconds, record.itl_seconds = 0.1, [0.01] * 4
            record.close("ok")
            with metrics.under_way(route):
                metrics.count(record)


def _scrape(metrics: Any) -> tuple[float, float]:
    """Milliseconds of processor time in all, and of the longest piece between two awaits."""
    pieces: list[float] = []
    if not hasattr(metrics, "scrape"):  # of a server that makes the text at once
        began = time.thread_time()
        metrics.text()
        pieces.append(time.thread_time() - began)
    else:
        making = metrics._make_parts()
        while True:
            began = time.thread_time()
            try:
                making.send(None)
            except StopIteration:
                break
            finally:
                pieces.append(time.thread_time() - began)
    return 1000 * sum(pieces), 1000 * max(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    asyncio.run(measure_changes(options.adapters, options.rounds))
    measure_scrapes(options.rounds)


if __name__ == "__main__":
    main()
