import heapq
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.step_figures import CountingRule
from loragate.adapters.registry.trial_records import (
    Arm,
    ExposureRow,
    FeedbackRow,
    OutcomeRow,
    Trial,
    TrialStatus,
)
from loragate.adapters.store import ArtifactStore
from loragate.server.experiments.assignment import Unit
from loragate.server.experiments.gates import parse_gate
from loragate.server.experiments.metrics import Outcome
from loragate.server.experiments.plans import ExperimentPlan, to_json
from loragate.server.experiments.rollout_plan import RolloutPlan
from loragate.server.experiments.running import RunningTrial
from loragate.server.experiments.tally import UnitRule
from loragate.server.experiments.verdict import Decision
from support.registry.stored_trials import keep, recounted

AT = datetime(2026, 11, 23, tzinfo=UTC)
LATER = AT + timedelta(days=1)
GATES = (parse_gate("error_rate<1%"), parse_gate("thumbs>=champion-30%"))
ROLLOUT = RolloutPlan((0.1, 0.5, 1.0), 600.0, GATES)
EXPERIMENT = ExperimentPlan((("merged", 0.5), ("champion", 0.5)), GATES)
GOOD = Outcome(False, 1.0, 20, 0.1, 0.05)


def trial(plan: RolloutPlan | ExperimentPlan = ROLLOUT, step: int = 1) -> Trial:
    is_rollout = isinstance(plan, RolloutPlan)
    first = "challenger" if is_rollout else "merged"
    versions = [AdapterVersion("acme", "support", number, "d", number) for number in (2, 1)]
    arms = (
        Arm(1, first, versions[0], "unmerged", 0.0),
        Arm(2, "champion", versions[1], "unmerged", 0.0),
    )
    kind = "rollout" if is_rollout else "experiment"
    adapter, status = AdapterName("acme", "support"), TrialStatus("RUNNING", step)
    return Trial(1, kind, adapter, "salt", to_json(plan), arms, status, AT, AT, None)


class Traffic:
    """Sends requests to a trial, and keeps what it would keep."""

    def __init__(self, running: RunningTrial) -> None:
        self.running = running
        self.exposures: list[ExposureRow] = []
        self.outcomes: list[OutcomeRow] = []
        self.feedback: list[FeedbackRow] = []

    def ask(
        self,
        number: int,
        outcome: Outcome = GOOD,
        *,
        is_fallback: bool = False,
        thumbs: float = 1.0,
        user: int | None = None,
    ) -> str:
        at = AT + timedelta(seconds=number)
        given = self.running.assign(Unit("user", f"user-{number if user is None else user}"))
        request = f"req-{len(self.exposures)}"
        exposure = self.running.expose(given, "acme", request, at)
        kept = self.running.observe(exposure, outcome, at, is_fallback=is_fallback)
        said = FeedbackRow("acme", request, "thumbs", thumbs, "", exposure.id, at)
        self.running.record(said)
        self.exposures.append(exposure)
        self.outcomes.append(kept)
        self.feedback.append(said)
        return given.arm.name

    def recounted(self, url: str, root: Path) -> RunningTrial:
        """By the next server."""
        rows = self.exposures, self.outcomes, self.feedback
        keep(url, self.running.trial, *rows)
        return recounted(url, self.running, ArtifactStore(root))


@pytest.fixture
def url(tmp_path: Path, empty_registry: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_registry, tmp_path)}"


def test_units_that_come_after_the_most_that_count_change_no_figure_but_the_requests(
    url: str, tmp_path: Path
):
    running = RunningTrial(trial(), ROLLOUT, most_units=100)
    traffic = Traffic(running)
    for number in range(100):
        traffic.ask(number)
    before = running.tallies(LATER)
    for number in range(100, 301):
        user = 7 if number == 300 else None
        traffic.ask(number, Outcome(True, 9.0, 0, None, None), thumbs=0.0, user=user)

    after = running.tallies(LATER)
    again = traffic.recounted(url, tmp_path).tallies(LATER)
    assert sum(arm.requests for arm in after.values()) == 301
    for arm in before:
        for then in (after[arm], again[arm]):
            assert then.units == before[arm].units
            assert then.sample("error_rate").values.sum() == 0
            assert then.sample("thumbs").size == before[arm].sample("thumbs").size


def test_share_of_the_step_decides_who_gets_the_challenger():
    units = [Unit("user", f"user-{number}") for number in range(2000)]
    first, second = (RunningTrial(trial(step=step), ROLLOUT) for step in (0, 1))
    in_first, in_second = (
        {unit for unit in units if running.assign(unit).arm.name == "challenger"}
        for running in (first, second)
    )

    assert len(in_first) / len(units) == pytest.approx(0.1, abs=0.02)
    assert len(in_second) / len(units) == pytest.approx(0.5, abs=0.04)
    assert in_first <= in_second


@pytest.mark.parametrize("plan", [ROLLOUT, EXPERIMENT], ids=["rollout", "experiment"])
def test_restart_comes_to_the_same_figures(
    plan: RolloutPlan | ExperimentPlan, url: str, tmp_path: Path
):
    before = Traffic(RunningTrial(trial(plan), plan))
    for number in range(60):
        before.ask(number, Outcome(number % 7 == 0, 1.0 + number, 20), is_fallback=number % 9 == 0)

    require_same_figures(before.recounted(url, tmp_path), before.running)


def require_same_figures(found: RunningTrial, expected: RunningTrial) -> None:
    """To the last value, and in the same order."""
    ours, theirs = found.tallies(LATER), expected.tallies(LATER)
    for name, tally in theirs.items():
        again = ours[name]
        for figure in ("units", "requests", "fallbacks", "unit_kinds"):
            assert getattr(again, figure) == getattr(tally, figure)
        assert again.samples.keys() == tally.samples.keys()
        for metric, sample in tally.samples.items():
            assert again.sample(metric).values.tolist() == sample.values.tolist()
            assert again.sample(metric).units.tolist() == sample.units.tolist()


@dataclass(frozen=True)
class Request:
    """Times in seconds; `feedback_after` is None where nobody says anything."""

    at: int
    unit: int
    tokens: int
    has_ttft: bool
    ending: str
    duration: int
    feedback_after: int | None


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Few units, so that they come back; some hours, so that windows end; no two at once."""
    count = draw(st.integers(0, 40))
    moments = draw(st.lists(st.integers(0, 3000), min_size=count, max_size=count, unique=True))
    return [
        Request(
            moment,
            draw(st.integers(0, 4)),
            draw(st.integers(0, 2)),
            draw(st.booleans()),
            draw(st.sampled_from(["ended", "failed", "fallback", "no outcome"])),
            draw(st.integers(1, 50) | st.integers(550, 700)),
            draw(st.sampled_from([None, 1, 45, 900])),
        )
        for moment in sorted(moments)
    ]


FEW = ExperimentPlan((("merged", 0.5), ("champion", 0.5)), GATES, rule=UnitRule(2, 600.0))


def live(trial_of: Trial, plan: ExperimentPlan, most_units: int, asked: list[Request]) -> Traffic:
    """Each event at its time, as a server that runs through hears of it."""
    traffic = Traffic(RunningTrial(trial_of, plan, most_units))
    running = traffic.running
    events: list[tuple[float, int, Callable[[datetime], None]]] = []

    def expose(request: Request, number: int, at: datetime) -> None:
        given = running.assign(Unit("user", f"user-{request.unit}"))
        exposure = running.expose(given, "acme", f"req-{number}", at)
        traffic.exposures.append(exposure)
        if request.ending != "no outcome":
            end = partial(observe, request, exposure)
            heapq.heappush(events, (request.at + request.duration + 0.25, number, end))
        if request.feedback_after is not None:
            said = partial(record, request, exposure)
            heapq.heappush(events, (request.at + request.feedback_after + 0.5, number, said))

    def observe(request: Request, exposure: ExposureRow, at: datetime) -> None:
        has_failed, ttft = request.ending == "failed", 0.1 if request.has_ttft else None
        outcome = Outcome(has_failed, request.duration, request.tokens, ttft, None)
        is_fallback = request.ending == "fallback"
        traffic.outcomes.append(running.observe(exposure, outcome, at, is_fallback=is_fallback))

    def record(request: Request, exposure: ExposureRow, at: datetime) -> None:
        said = FeedbackRow(
            "acme", exposure.request_id, "rating", float(request.unit), "", exposure.id, at
        )
        traffic.feedback.append(said)
        running.record(said)

    for number, request in enumerate(asked):
        heapq.heappush(events, (request.at, number, partial(expose, request, number)))
    while events:
        moment, number, happen = heapq.heappop(events)
        happen(AT + timedelta(seconds=moment, microseconds=number))
    return traffic


@given(asked=requests(), most_units=st.integers(1, 6))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_was_asked_a_restart_comes_to_the_same_figures(
    asked: list[Request], most_units: int, empty_registry: Path, tmp_path: Path
):
    traffic = live(trial(FEW), FEW, most_units, asked)
    (tmp_path / "registry.db").unlink(missing_ok=True)
    path = shutil.copy(empty_registry, tmp_path / "registry.db")
    require_same_figures(traffic.recounted(f"sqlite:///{path}", tmp_path), traffic.running)


def test_a_restart_on_postgresql_comes_to_the_same_figures(postgresql_url: str, tmp_path: Path):
    chance = random.Random(7)
    moments = sorted(chance.sample(range(20_000), 400))
    endings = ["ended", "ended", "failed", "fallback", "no outcome"]
    asked = [
        Request(
            moment,
            chance.randrange(40),
            chance.randrange(3),
            chance.random() < 0.5,
            chance.choice(endings),
            chance.randrange(1, 50),
            chance.choice([None, 1, 45, 900]),
        )
        for moment in moments
    ]
    traffic = live(trial(FEW), FEW, 30, asked)
    require_same_figures(traffic.recounted(postgresql_url, tmp_path), traffic.running)


def test_postgresql_looks_through_a_steps_units_once_and_not_for_each_request(
    postgresql_url: str, tmp_path: Path
):
    with Registry(postgresql_url, ArtifactStore(tmp_path)) as registry:
        with registry.observations.step_figures(1, 1, CountingRule(1, 600.0, 100)) as figures:
            seen = figures._session.scalar(text("SHOW enable_nestloop"))
        with registry._database.reading() as session:
            assert (seen, session.scalar(text("SHOW enable_nestloop"))) == ("off", "on")


def test_after_a_restart_counting_goes_on_where_it_was(url: str, tmp_path: Path):
    whole = Traffic(RunningTrial(trial(FEW), FEW))
    for number in range(30):
        whole.ask(60 * number, user=number % 7)
    after = Traffic(whole.recounted(url, tmp_path))
    open_one = whole.exposures[-1]
    for running in (whole.running, after.running):
        late = FeedbackRow("acme", open_one.request_id, "rating", 4.0, "", open_one.id, open_one.at)
        running.record(late)
    for number in range(30, 60):
        for traffic in (whole, after):
            traffic.ask(60 * number, user=number % 7)
    require_same_figures(after.running, whole.running)


def test_what_is_read_to_count_anew_is_in_the_number_of_units_and_not_of_requests(
    url: str, tmp_path: Path
):
    busy = Traffic(RunningTrial(trial(FEW), FEW))
    given = busy.running.assign(Unit("user", "user-1"))
    for number in range(500):
        at = AT + timedelta(seconds=number)
        exposure = busy.running.expose(given, "acme", f"req-{number}", at)
        busy.exposures.append(exposure)
        busy.outcomes.append(busy.running.observe(exposure, GOOD, at))
    keep(url, busy.running.trial, busy.exposures, busy.outcomes, ())
    with Registry(url, ArtifactStore(tmp_path)) as registry:
        rule = busy.running.counting_rule
        with registry.observations.step_figures(1, 1, rule) as figures:
            assert len(list(figures.events())) == 1 + rule.values
            assert sum(figures.requests().values()) == 500


def test_broken_challenger_fails_within_a_few_units():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT))
    broken = Outcome(True, 0.01)
    asked = 0
    while traffic.running.verdicts(LATER)["challenger"].decision is not Decision.FAIL:
        arm = traffic.running.assign(Unit("user", f"user-{asked}")).arm.name
        traffic.ask(asked, broken if arm == "challenger" else GOOD)
        asked += 1

    assert asked < 40


def test_good_challenger_passes():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT))
    for number in range(1200):
        traffic.ask(number)

    assert traffic.running.verdicts(LATER)["challenger"].decision is Decision.PASS


def test_requests_answered_by_a_fallback_are_in_no_figure_nor_is_their_feedback():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT))
    for number in range(50):
        traffic.ask(number, is_fallback=True, thumbs=0.0)

    for tally in traffic.running.tallies(LATER).values():
        assert tally.fallbacks == tally.requests > 0
        assert not tally.samples


def test_last_step_has_no_champion_and_is_judged_by_numbers_alone():
    running = RunningTrial(trial(step=2), ROLLOUT)
    traffic = Traffic(running)
    arms = {traffic.ask(number, thumbs=0.0) for number in range(1000)}

    assert arms == {"challenger"}
    assert running.verdicts(LATER)["challenger"].decision is Decision.PASS


def test_feedback_of_another_trial_is_passed_over():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT))
    traffic.running.record(FeedbackRow("acme", "req-1", "thumbs", 0.0, "", "elsewhere", AT))
    traffic.running.record(FeedbackRow("acme", "req-1", "thumbs", 0.0, "", None, AT))

    assert not any(tally.samples for tally in traffic.running.tallies(LATER).values())


def test_what_is_long_past_is_forgotten():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT))
    traffic.ask(0)
    exposure = traffic.exposures[0]
    traffic.ask(4000)
    late = FeedbackRow(
        "acme", "req-0", "rating", 1.0, "", exposure.id, AT + timedelta(seconds=4001)
    )
    traffic.running.record(late)

    assert "rating" not in traffic.running.tallies(LATER)["champion"].samples
    assert "rating" not in traffic.running.tallies(LATER)["challenger"].samples
