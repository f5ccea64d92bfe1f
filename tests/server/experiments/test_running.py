from datetime import UTC, datetime, timedelta

import pytest

from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.trial_records import (
    Arm,
    ExposureRow,
    FeedbackRow,
    Observations,
    OutcomeRow,
    Standing,
    Trial,
)
from loragate.server.experiments.assignment import Unit
from loragate.server.experiments.gates import parse_gate
from loragate.server.experiments.metrics import Outcome
from loragate.server.experiments.plans import ExperimentPlan, to_json
from loragate.server.experiments.rollout_plan import RolloutPlan
from loragate.server.experiments.running import RunningTrial
from loragate.server.experiments.verdict import Decision

AT = datetime(2026, 11, 23, tzinfo=UTC)
LATER = AT + timedelta(days=1)
GATES = (parse_gate("error_rate<1%"), parse_gate("thumbs>=champion-30%"))
ROLLOUT = RolloutPlan((0.1, 0.5, 1.0), 600.0, GATES)
EXPERIMENT = ExperimentPlan((("merged", 0.5), ("champion", 0.5)), GATES)
NOTHING = Observations((), (), ())
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
    adapter, standing = AdapterName("acme", "support"), Standing("RUNNING", step)
    return Trial(1, kind, adapter, "salt", to_json(plan), arms, standing, AT, AT, None)


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
    ) -> str:
        at = AT + timedelta(seconds=number)
        given = self.running.assign(Unit("user", f"user-{number}"))
        exposure = self.running.expose(given, "acme", f"req-{number}", at)
        kept = self.running.observe(exposure, outcome, at, is_fallback=is_fallback)
        said = FeedbackRow("acme", f"req-{number}", "thumbs", thumbs, "", exposure.id, at)
        self.running.hear(said)
        self.exposures.append(exposure)
        self.outcomes.append(kept)
        self.feedback.append(said)
        return given.arm.name

    @property
    def kept(self) -> Observations:
        return Observations(tuple(self.exposures), tuple(self.outcomes), tuple(self.feedback))


def test_units_that_come_after_the_most_that_count_change_no_figure_but_the_requests():
    running = RunningTrial(trial(), ROLLOUT, NOTHING, most_units=100)
    traffic = Traffic(running)
    for number in range(100):
        traffic.ask(number)
    before = running.tallies(LATER)
    for number in (*range(100, 300), 7):
        traffic.ask(number, Outcome(True, 9.0, 0, None, None), thumbs=0.0)

    after = running.tallies(LATER)
    again = RunningTrial(trial(), ROLLOUT, traffic.kept, most_units=100).tallies(LATER)
    assert sum(arm.requests for arm in after.values()) == 301
    for arm in before:
        for then in (after[arm], again[arm]):
            assert then.units == before[arm].units
            assert then.sample("error_rate").values.sum() == 0
            assert then.sample("thumbs").size == before[arm].sample("thumbs").size


def test_share_of_the_step_decides_who_gets_the_challenger():
    units = [Unit("user", f"user-{number}") for number in range(2000)]
    first, second = (RunningTrial(trial(step=step), ROLLOUT, NOTHING) for step in (0, 1))
    in_first, in_second = (
        {unit for unit in units if running.assign(unit).arm.name == "challenger"}
        for running in (first, second)
    )

    assert len(in_first) / len(units) == pytest.approx(0.1, abs=0.02)
    assert len(in_second) / len(units) == pytest.approx(0.5, abs=0.04)
    assert in_first <= in_second


@pytest.mark.parametrize("plan", [ROLLOUT, EXPERIMENT], ids=["rollout", "experiment"])
def test_restart_comes_to_the_same_figures(plan: RolloutPlan | ExperimentPlan):
    before = Traffic(RunningTrial(trial(plan), plan, NOTHING))
    for number in range(60):
        before.ask(number, Outcome(number % 7 == 0, 1.0 + number, 20), is_fallback=number % 9 == 0)

    after = RunningTrial(trial(plan), plan, before.kept)

    expected, found = before.running.tallies(LATER), after.tallies(LATER)
    for name, tally in expected.items():
        again = found[name]
        assert (again.units, again.requests, again.fallbacks) == (
            tally.units,
            tally.requests,
            tally.fallbacks,
        )
        for metric, sample in tally.samples.items():
            assert again.sample(metric).means().tolist() == sample.means().tolist()


def test_broken_challenger_fails_within_a_few_units():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT, NOTHING))
    broken = Outcome(True, 0.01)
    asked = 0
    while traffic.running.verdicts(LATER)["challenger"].decision is not Decision.FAIL:
        arm = traffic.running.assign(Unit("user", f"user-{asked}")).arm.name
        traffic.ask(asked, broken if arm == "challenger" else GOOD)
        asked += 1

    assert asked < 40


def test_good_challenger_passes():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT, NOTHING))
    for number in range(1200):
        traffic.ask(number)

    assert traffic.running.verdicts(LATER)["challenger"].decision is Decision.PASS


def test_requests_answered_by_a_fallback_are_in_no_figure_nor_is_their_feedback():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT, NOTHING))
    for number in range(50):
        traffic.ask(number, is_fallback=True, thumbs=0.0)

    for tally in traffic.running.tallies(LATER).values():
        assert tally.fallbacks == tally.requests > 0
        assert not tally.samples


def test_last_step_has_no_champion_and_is_judged_by_numbers_alone():
    running = RunningTrial(trial(step=2), ROLLOUT, NOTHING)
    traffic = Traffic(running)
    arms = {traffic.ask(number, thumbs=0.0) for number in range(1000)}

    assert arms == {"challenger"}
    assert running.verdicts(LATER)["challenger"].decision is Decision.PASS


def test_feedback_of_another_trial_is_passed_over():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT, NOTHING))
    traffic.running.hear(FeedbackRow("acme", "req-1", "thumbs", 0.0, "", "elsewhere", AT))
    traffic.running.hear(FeedbackRow("acme", "req-1", "thumbs", 0.0, "", None, AT))

    assert not any(tally.samples for tally in traffic.running.tallies(LATER).values())


def test_what_is_long_past_is_forgotten():
    traffic = Traffic(RunningTrial(trial(), ROLLOUT, NOTHING))
    traffic.ask(0)
    exposure = traffic.exposures[0]
    traffic.ask(4000)
    late = FeedbackRow(
        "acme", "req-0", "rating", 1.0, "", exposure.id, AT + timedelta(seconds=4001)
    )
    traffic.running.hear(late)

    assert "rating" not in traffic.running.tallies(LATER)["champion"].samples
    assert "rating" not in traffic.running.tallies(LATER)["challenger"].samples
