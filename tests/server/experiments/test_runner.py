"""The runner on a real registry, with clocks that a test sets."""

import asyncio
import shutil
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from loragate.adapters.errors import StoreError
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.observations import ObservationLedger
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.adapters.registry.step_figures import CountingRule, StepFigures
from loragate.adapters.registry.trial_records import NewArm, Trial, TrialStatus
from loragate.adapters.registry.trials import TrialLedger
from loragate.adapters.store import ArtifactStore
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import Route
from loragate.server.errors import EngineDead
from loragate.server.experiments.assignment import Unit
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.runner import TrialRunner
from loragate.server.experiments.service import TrialService
from loragate.server.experiments.specs import RolloutSpec
from loragate.server.experiments.trial_router import TrialRouter
from support.models.one_layer import write_adapter
from support.registry.follower import following
from support.registry.observations import observed
from support.registry.promotions import let_serve
from support.waiting import until

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


BROKEN = Ended(outcome="internal_error", is_fault=True)


@dataclass
class Stumbles:
    """Errors that the registry's calls raise first, by the call, and how often each was made."""

    errors: dict[str, list[Exception]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)

    def reach(self, call: str) -> None:
        self.calls[call] += 1
        if self.errors[call]:
            raise self.errors[call].pop(0)


class StumblingTrials(TrialLedger):
    def __init__(self, database: Database, stumbles: Stumbles) -> None:
        super().__init__(database)
        self.stumbles = stumbles

    def under_way(self) -> tuple[Trial, ...]:
        self.stumbles.reach("trials_under_way")
        return super().under_way()

    def note_watched(self, trial: Trial, seconds: float) -> None:
        self.stumbles.reach("note_watched")
        super().note_watched(trial, seconds)


class StumblingObservations(ObservationLedger):
    def __init__(self, database: Database, stumbles: Stumbles) -> None:
        super().__init__(database)
        self.stumbles = stumbles

    @contextmanager
    def step_figures(self, trial_id: int, step: int, rule: CountingRule) -> Iterator[StepFigures]:
        self.stumbles.reach("step_figures")
        with super().step_figures(trial_id, step, rule) as figures:
            yield figures


class StumblingRegistry(Registry):
    def __init__(self, url: str, store: ArtifactStore) -> None:
        super().__init__(url, store)
        self.stumbles = Stumbles()
        self.trials = StumblingTrials(self._database, self.stumbles)
        self.observations = StumblingObservations(self._database, self.stumbles)


@dataclass
class Rolling:
    """A rollout of v2 beside v1, and whoever asks."""

    registry: Registry
    trial_router: TrialRouter
    trial: Trial
    champion: AdapterVersion
    asked: int = 0

    def ask(self, requests: int, ended: Ended) -> None:
        for _ in range(requests):
            self.asked += 1
            active = self.trial_router.active_trial("acme", "support")
            assert active is not None
            unit = Unit("user", f"user-{self.asked}")
            assignment = self.trial_router.assign(active, Route("acme", self.champion), unit)
            assert assignment is not None
            assignment.admit(f"req-{self.asked}")
            assignment.end(ended)

    async def fail_until(self, is_over: Callable[[], bool]) -> None:
        """Users come and get errors, at least 100 of them. A sample that looks uneven delays the
        verdict until more have come, and by chance one does in some hundred.
        """
        self.ask(90, BROKEN)
        async with asyncio.timeout(10):
            while not is_over():
                self.ask(10, BROKEN)
                await asyncio.sleep(0.05)

    @property
    def status(self) -> TrialStatus:
        return self.registry.trials.get(self.trial.id).status


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path) -> StumblingRegistry:
    home = Home(tmp_path / "home").ensure()
    shutil.copy(empty_registry, home.root)
    registry = StumblingRegistry(home.database_url, ArtifactStore(home.artifacts))
    registry.tenants.create("acme")
    for number in (1, 2):
        registry.versions.publish(SUPPORT, write_adapter(tmp_path / f"v{number}", number))
    let_serve(registry, SUPPORT, "champion", 1)
    return registry


SPEC = RolloutSpec("v2", (50, 100), MINUTE, ("error_rate<30%",))


@asynccontextmanager
async def rolling(registry: Registry, clocks: Clocks) -> AsyncIterator[Rolling]:
    """Goes on with the rollout under way, or begins one."""
    known = registry.trials.list("acme", limit=1)
    if known and known[0].adapter == SUPPORT:
        trial = known[0]
    else:
        trial = TrialService(registry).start_rollout(SUPPORT, SPEC, "me")
    async with looked_at(registry, clocks) as trial_router:
        await until(lambda: trial_router.active_trial("acme", "support") is not None, 10)
        champion = trial.arm("champion").version
        assert champion is not None
        yield Rolling(registry, trial_router, trial, champion)


async def no_engine(version: AdapterVersion) -> None:
    raise EngineDead("The engine starts later.")


@asynccontextmanager
async def looked_at(
    registry: Registry,
    clocks: Clocks,
    warm: Callable[[AdapterVersion], Awaitable[None]] = no_engine,
) -> AsyncIterator[TrialRouter]:
    """Whatever trials there are, by a runner."""
    log, changed = ObservationLog(registry.observations), asyncio.Event()
    trial_router = TrialRouter(log, lambda version: True, lambda: clocks.wall)
    watcher = SnapshotWatcher(registry, [lambda snapshot: changed.set()])
    async with log.writing(BackgroundTasks()), following(watcher) as snapshots:
        runner = TrialRunner(
            registry,
            snapshots,
            trial_router,
            warm,
            changed,
            0.01,
            clocks.monotonic,
            lambda: clocks.wall,
        )
        async with runner.running(BackgroundTasks()):
            yield trial_router


async def test_wall_clock_that_jumps_moves_no_rollout(registry: Registry) -> None:
    clocks = Clocks()
    async with rolling(registry, clocks) as rollout:
        for days in (3, -7, 30):
            clocks.wall += timedelta(days=days)
            rollout.ask(50, Ended())
            await clocks.some_looks()
            assert (rollout.status.state, rollout.status.step) == ("RUNNING", 0)
        clocks.seconds += MINUTE + 1
        await until(lambda: rollout.status.step == 1, 10)


async def test_requests_that_fail_take_everybody_back_before_the_step_is_over(
    registry: Registry,
) -> None:
    async with rolling(registry, Clocks()) as rollout:
        await rollout.fail_until(lambda: rollout.status.state == "ROLLED_BACK")
        await until(lambda: rollout.trial_router.active_trial("acme", "support") is None, 10)


async def test_refused_and_cancelled_requests_are_exposures_without_an_outcome(
    registry: Registry,
) -> None:
    async with rolling(registry, Clocks()) as rollout:
        rollout.ask(20, Ended(outcome="rate_limit_exceeded", ttft_seconds=None))
        rollout.ask(20, Ended(outcome="cancelled", ttft_seconds=None))
        rollout.ask(20, Ended(outcome="draining", is_fault=True, ttft_seconds=None))
    seen = observed(registry, rollout.trial.id, 0)
    assert (len(seen.exposures), seen.outcomes) == (60, ())


async def test_time_watched_is_kept_over_a_restart(registry: Registry) -> None:
    clocks = Clocks()
    async with rolling(registry, clocks) as rollout:
        rollout.ask(200, Ended())
        await clocks.some_looks()
        clocks.seconds += MINUTE * 0.9
        await clocks.some_looks()
    assert rollout.status.watched_seconds == pytest.approx(MINUTE * 0.9)
    async with rolling(registry, clocks) as rollout:
        await clocks.some_looks()
        assert rollout.status.step == 0
        clocks.seconds += MINUTE * 0.2
        await until(lambda: rollout.status.step == 1, 10)


ERRORS = pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a mistake of ours"),
        ValueError("no number"),
        IntegrityError("INSERT", {}, Exception("duplicate key")),
        PoolTimeout("QueuePool limit reached"),
        StoreError("the database did not answer"),
    ],
    ids=lambda error: type(error).__name__,
)


@ERRORS
@pytest.mark.parametrize("call", ["trials_under_way", "step_figures"])
async def test_trial_begins_after_any_error(
    registry: StumblingRegistry, call: str, error: Exception
) -> None:
    registry.stumbles.errors[call] = [error]
    clocks = Clocks()
    TrialService(registry).start_rollout(SUPPORT, SPEC, "me")
    async with looked_at(registry, clocks) as trial_router:
        async with asyncio.timeout(10):
            while trial_router.active_trial("acme", "support") is None:
                clocks.seconds += 1
                await asyncio.sleep(0.005)


@ERRORS
async def test_look_goes_on_after_any_error(registry: StumblingRegistry, error: Exception) -> None:
    clocks = Clocks()
    async with rolling(registry, clocks) as rollout:
        await clocks.some_looks()
        registry.stumbles.errors["note_watched"] = [error]
        clocks.seconds += 6
        await until(lambda: registry.stumbles.calls["note_watched"] >= 1, 10)

        def is_over() -> bool:
            clocks.seconds += 1
            return rollout.status.state == "ROLLED_BACK"

        await rollout.fail_until(is_over)


def ended_trials(registry: Registry) -> list[tuple[str, str]]:
    return [
        (trial.status.state, trial.status.reason)
        for trial in registry.trials.list("acme")
        if trial.ended_at is not None
    ]


async def test_trial_that_cannot_begin_is_tried_ever_more_seldom_and_ended_with_its_reason(
    registry: StumblingRegistry,
) -> None:
    registry.stumbles.errors["step_figures"] = [RuntimeError("no such figure")] * 1000
    clocks, calls = Clocks(), registry.stumbles.calls
    TrialService(registry).start_rollout(SUPPORT, SPEC, "me")
    async with looked_at(registry, clocks) as trial_router:
        await until(lambda: calls["step_figures"] == 1, 10)
        await clocks.some_looks()
        assert calls == {"step_figures": 1, "trials_under_way": 1}
        for tries, pause in enumerate((1, 2, 4, 8, 16, 32, 60), start=1):
            await clocks.some_looks()  # the pause has begun
            clocks.seconds += pause - 0.5
            await clocks.some_looks()
            assert calls["step_figures"] == tries
            clocks.seconds += 0.5
            await until(lambda tries=tries: calls["step_figures"] > tries, 10)
        await until(lambda: len(ended_trials(registry)) == 1, 10)
        [(state, reason)] = ended_trials(registry)
        assert (state, "no such figure" in reason) == ("ABORTED", True)
        assert trial_router.active_trial("acme", "support") is None


async def test_trial_is_not_ended_for_a_full_disk(registry: StumblingRegistry) -> None:
    clocks, loads = Clocks(), 0

    async def warm(version: AdapterVersion) -> None:
        nonlocal loads
        loads += 1
        if loads <= 12:
            raise StoreError("cannot be put into the engine's dtype: no space left on device")

    TrialService(registry).start_rollout(SUPPORT, SPEC, "me")
    async with looked_at(registry, clocks, warm) as trial_router:
        async with asyncio.timeout(10):
            while trial_router.active_trial("acme", "support") is None:
                clocks.seconds += MINUTE
                await asyncio.sleep(0.005)
    assert (loads, ended_trials(registry)) == (14, [])


@pytest.mark.parametrize(
    "plan",
    [
        '{"type":"rollout","steps":[0.5,1.0],"every_seconds":null,"gates":[],"alpha":0.05}',
        '{"type":"rollout","steps":[5e-324,1.0],"every_seconds":60,"gates":[],"alpha":0.05}',
        '{"type":"rollout","steps":[1.0],"every_seconds":60,"gates":["gone<1%"],"alpha":0.05}',
        '{"type":"rollout","future_field":1}',
        "",
    ],
)
async def test_trial_whose_plan_cannot_be_read_is_ended_and_holds_up_no_other(
    registry: StumblingRegistry, tmp_path: Path, plan: str
) -> None:
    other = AdapterName("acme", "other")
    registry.versions.publish(other, write_adapter(tmp_path / "other", 3))
    arms = NewArm("challenger", 1), NewArm("champion", None)
    registry.trials.start("rollout", other, arms, plan, "RUNNING")
    async with rolling(registry, Clocks()) as rollout:
        await rollout.fail_until(lambda: len(ended_trials(registry)) == 2)
    [(_, ended), (state, why)] = ended_trials(registry)
    assert "error_rate" in ended
    assert (state, "cannot be followed" in why) == ("ABORTED", True)


async def test_trial_ended_while_it_is_prepared_gives_out_no_arm(
    registry: StumblingRegistry,
) -> None:
    async with rolling(registry, Clocks()) as rollout:
        rollout.ask(10, Ended())  # after a restart, these units keep their arms from the beginning

    async def hang(version: AdapterVersion) -> None:
        await asyncio.Event().wait()

    async with looked_at(registry, Clocks(), hang) as trial_router:
        await until(lambda: trial_router.active_trial("acme", "support") is not None, 10)
        TrialService(registry).change(SUPPORT, "abort", "", "enough", "me")
        await until(lambda: trial_router.active_trial("acme", "support") is None, 10)
