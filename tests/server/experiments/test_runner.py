"""The runner on a real registry, with clocks that a test sets."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from promotions import let_serve
from small_server import until
from tiny_adapters import write_adapter
from watching import following

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry import Registry
from loragate.adapters.snapshot import SnapshotWatcher
from loragate.adapters.store import ArtifactStore
from loragate.adapters.trial_records import Standing, Trial
from loragate.server.background import BackgroundTasks
from loragate.server.core import Route
from loragate.server.errors import EngineDead
from loragate.server.experiments.assignment import Unit
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.office import RolloutWish, TrialOffice
from loragate.server.experiments.places import Places
from loragate.server.experiments.runner import TrialRunner

SUPPORT = AdapterName("acme", "support")
MINUTE = 60.0


@dataclass
class Clocks:
    """A wall clock and a monotonic one; the test moves them."""

    wall: datetime = datetime(2026, 11, 23, tzinfo=UTC)
    seconds: float = 0.0
    looks: int = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.seconds

    async def some_looks(self) -> None:
        """Returns once what was set has been looked at."""
        before = self.looks
        await until(lambda: self.looks > before + 4, 10)


@dataclass
class Ended:
    """A request that went well."""

    completion_tokens: int = 4
    ttft_seconds: float | None = 0.1
    duration_seconds: float = 0.2
    outcome: str = "ok"
    is_fault: bool = False
    itl_seconds: list[float] = field(default_factory=lambda: [0.02])


@dataclass
class Rolling:
    """A rollout of v2 beside v1, and whoever asks."""

    registry: Registry
    places: Places
    trial: Trial
    champion: AdapterVersion
    asked: int = 0

    def ask(self, requests: int, ended: Ended) -> None:
        for _ in range(requests):
            self.asked += 1
            station = self.places.station("acme", "support")
            assert station is not None
            unit = Unit("user", f"user-{self.asked}")
            place = self.places.place(station, Route("acme", self.champion), unit)
            assert place is not None
            place.admit(f"req-{self.asked}")
            place.end(ended)

    @property
    def standing(self) -> Standing:
        return self.registry.trial(self.trial.id).standing


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path) -> Registry:
    home = Home(tmp_path / "home").ensure()
    shutil.copy(empty_registry, home.root)
    registry = Registry(home.database_url, ArtifactStore(home.artifacts))
    registry.create_tenant("acme")
    for number in (1, 2):
        registry.publish(SUPPORT, write_adapter(tmp_path / f"v{number}", number))
    let_serve(registry, SUPPORT, "champion", 1)
    return registry


@asynccontextmanager
async def rolling(registry: Registry, clocks: Clocks) -> AsyncIterator[Rolling]:
    """Goes on with the rollout under way, or begins one."""
    wish = RolloutWish("v2", (50, 100), MINUTE, ("error_rate<30%",))
    under_way = registry.trials_under_way()
    trial = under_way[0] if under_way else TrialOffice(registry).start_rollout(SUPPORT, wish, "me")

    async def warm(version: AdapterVersion) -> None:
        raise EngineDead("The engine starts later.")

    log, changed = ObservationLog(registry), asyncio.Event()
    places = Places(log, lambda version: True, lambda: clocks.wall)
    watcher = SnapshotWatcher(registry, [lambda snapshot: changed.set()])
    async with log.writing(BackgroundTasks()), following(watcher) as snapshots:
        runner = TrialRunner(
            registry,
            snapshots,
            places,
            warm,
            changed,
            0.01,
            clocks.monotonic,
            lambda: clocks.wall,
        )
        async with runner.running():
            await until(lambda: places.station("acme", "support") is not None, 10)
            champion = trial.arm("champion").version
            assert champion is not None
            yield Rolling(registry, places, trial, champion)


async def test_wall_clock_that_jumps_moves_no_rollout(registry: Registry) -> None:
    clocks = Clocks()
    async with rolling(registry, clocks) as rollout:
        for days in (3, -7, 30):
            clocks.wall += timedelta(days=days)
            rollout.ask(50, Ended())
            await clocks.some_looks()
            assert (rollout.standing.state, rollout.standing.step) == ("RUNNING", 0)
        clocks.seconds += MINUTE + 1
        await until(lambda: rollout.standing.step == 1, 10)


async def test_requests_that_fail_take_everybody_back_before_the_step_is_over(
    registry: Registry,
) -> None:
    async with rolling(registry, Clocks()) as rollout:
        rollout.ask(100, Ended(outcome="internal_error", is_fault=True))
        await until(lambda: rollout.standing.state == "ROLLED_BACK", 10)
        await until(lambda: rollout.places.station("acme", "support") is None, 10)


async def test_refused_and_cancelled_requests_are_exposures_without_an_outcome(
    registry: Registry,
) -> None:
    async with rolling(registry, Clocks()) as rollout:
        rollout.ask(20, Ended(outcome="rate_limit_exceeded", ttft_seconds=None))
        rollout.ask(20, Ended(outcome="cancelled", ttft_seconds=None))
        rollout.ask(20, Ended(outcome="draining", is_fault=True, ttft_seconds=None))
    seen = registry.observations(rollout.trial.id, 0)
    assert (len(seen.exposures), seen.outcomes) == (60, ())


async def test_time_watched_is_kept_over_a_restart(registry: Registry) -> None:
    clocks = Clocks()
    async with rolling(registry, clocks) as rollout:
        rollout.ask(200, Ended())
        await clocks.some_looks()
        clocks.seconds += MINUTE * 0.9
        await clocks.some_looks()
    assert rollout.standing.watched_seconds == pytest.approx(MINUTE * 0.9)
    async with rolling(registry, clocks) as rollout:
        await clocks.some_looks()
        assert rollout.standing.step == 0
        clocks.seconds += MINUTE * 0.2
        await until(lambda: rollout.standing.step == 1, 10)
