"""The engine's core dies at each step of a promotion: it is noticed, said, and made up for."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.registry.registry import AdapterState
from loragate.adapters.store import ArtifactStore
from support.engines.stepping_engine import SteppingEngine, telling_transactions, weights_digest
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, Furnished, Served, serve
from support.waiting import until

STEPS = [
    "@champion alias.set committed",
    "@v2 LOADING written",
    "@v2 LOADING committed",
    "@v2 load",
    "@v2 loaded",
    "@v2 score",
    "@v2 scored",
    "@v2 READY written",
    "@champion alias.serve written",
    "@v1 DRAINING written",
    "@v2 READY committed",
    "@champion alias.serve committed",
    "@v1 DRAINING committed",
    "@v1 unload",
    "@v1 unloaded",
    "@v1 PUBLISHED written",
    "@v1 PUBLISHED committed",
]


@dataclass
class MortalEngines:
    """Starts one engine after another. Each is dead from `last_step` on, which is told once."""

    last_step: str = ""
    made: list[SteppingEngine] = field(default_factory=list)
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    died: float = 0.0  # by the monotonic clock

    @property
    def last(self) -> SteppingEngine:
        return self.made[-1]

    def reach(self, step: str) -> None:
        if step == self.last_step:
            self.last_step = ""
            self.last.is_alive = False
            self.died = time.monotonic()

    @asynccontextmanager
    async def start(self) -> AsyncIterator[SteppingEngine]:
        if self.made:
            await self.may_start.wait()
        self.made.append(SteppingEngine(reach=self.reach))
        yield self.last


@pytest.fixture
def engines() -> Iterator[MortalEngines]:
    engines = MortalEngines()
    with telling_transactions(engines.reach):
        yield engines


@pytest_asyncio.fixture
async def served(
    furnished: Furnished, tmp_path: Path, base: BaseModel, engines: MortalEngines
) -> AsyncIterator[Served]:
    nobody = SteppingEngine(reach=lambda step: None)
    home = tmp_path / "served"
    async with serve(furnished, home, base, nobody, start=engines.start) as served:
        yield served


async def answering(served: Served) -> str | None:
    """Which version answers by the alias, with its own weights; None while the engine is down."""
    reply = await served.chat()
    if reply.status_code == 503:
        assert reply.json()["error"]["code"] == "engine_dead"
        assert int(reply.headers["retry-after"]) >= 1
        return None
    assert reply.status_code == 200, reply.text
    folder = ArtifactStore(served.home.artifacts).path(reply.headers["x-loragate-digest"])
    assert reply.json()["choices"][0]["message"]["content"] == weights_digest(folder)
    return reply.headers["x-loragate-adapter"]


def is_settled(served: Served, engines: MortalEngines) -> bool:
    """Whether every target is served, nobody is half-way, and the engine holds no orphan."""
    snapshot = served.registry.snapshot()
    entries = snapshot.entries("acme", "support").values()
    at_rest = {AdapterState.PUBLISHED, AdapterState.READY}
    ready = {entry.version for entry in entries if entry.state is AdapterState.READY}
    held = {adapter.version for adapter in engines.last.loaded.values()}
    return (
        all(target.desired == target.serving for target in snapshot.desired_aliases())
        and all(entry.state in at_rest for entry in entries)
        and held <= ready
    )


@pytest.mark.parametrize("step", STEPS)
async def test_promotion_survives_the_engines_death(
    served: Served, engines: MortalEngines, tmp_path: Path, step: str
) -> None:
    await until(lambda: is_settled(served, engines), 5)
    assert await answering(served) == "acme/support@v1"
    two = served.registry.versions.publish(SUPPORT, write_adapter(tmp_path / "v2", 2))

    engines.last_step = f"{SUPPORT}{step}"
    served.registry.aliases.set(SUPPORT, "champion", two.number)

    await until(lambda: not engines.last.is_alive, 5)
    assert (await served.client.get("/readyz")).status_code == 503
    assert time.monotonic() - engines.died < 1
    assert await answering(served) is None
    assert served.registry.snapshot().resolve("acme", "support", "champion").number in (1, 2)

    engines.may_start.set()
    await until(lambda: len(engines.made) == 2 and is_settled(served, engines), 10)
    assert (await served.client.get("/readyz")).status_code == 200
    async with asyncio.timeout(10):  # the server reads the registry again in a moment
        while await answering(served) != "acme/support@v2":  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
