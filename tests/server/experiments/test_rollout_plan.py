import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.trial_records import Arm, Trial, TrialStatus
from loragate.server.errors import InvalidRequest, RolloutMoveRefused, UnreadablePlan
from loragate.server.experiments.gates import parse_gate
from loragate.server.experiments.plans import CHAMPION, ExperimentPlan, from_json, plan_of, to_json
from loragate.server.experiments.rollout_plan import (
    RolloutPlan,
    RolloutProgress,
    RolloutState,
    abort,
    fell_back,
    look,
    parse_steps,
    pause,
    resume,
)
from loragate.server.experiments.tally import UnitRule
from loragate.server.experiments.verdict import Decision, Verdict

GATES = (parse_gate("error_rate<1%"), parse_gate("ttft_p95<1.2x"))
PLAN = RolloutPlan((0.01, 0.1, 0.5, 1.0), 600.0, GATES)
PASS = Verdict(Decision.PASS, "every gate holds")
FAIL = Verdict(Decision.FAIL, "error_rate<1% fails")
OPEN = Verdict(Decision.INCONCLUSIVE, "too early", missing=("about 40 more units",))
BLOCKED = Verdict(Decision.BLOCKED, "the arms did not fill")
START = RolloutProgress()

SECONDS = st.floats(0, 2000)
LOOKS = st.lists(st.tuples(SECONDS, st.sampled_from([PASS, FAIL, OPEN, BLOCKED])), max_size=30)


def test_good_challenger_goes_up_step_by_step_to_the_end():
    shares, progress = [START.share(PLAN)], START
    for _ in PLAN.steps:
        progress = look(PLAN, progress, 600, PASS)
        shares.append(progress.share(PLAN))

    assert shares == [0.01, 0.1, 0.5, 1.0, 1.0]
    assert progress.state is RolloutState.PASSED


def test_step_is_held_for_its_time_even_when_its_gates_hold():
    early = look(PLAN, START, 599, PASS)

    assert (early.state, early.step, early.watched_seconds) == (RolloutState.RUNNING, 0, 599)
    assert look(PLAN, early, 1, PASS).step == 1


@pytest.mark.parametrize("before", [START, pause(START, "wait"), look(PLAN, START, 700, OPEN)])
def test_failure_rolls_back_at_once_from_wherever_it_stands(before: RolloutProgress):
    after = look(PLAN, before, 0, FAIL)

    assert (after.state, after.share(PLAN)) == (RolloutState.ROLLED_BACK, 0.0)
    assert after.reason == FAIL.reason


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(OPEN, "about 40 more units"), (BLOCKED, "the arms did not fill")],
)
def test_open_gates_hold_the_share_and_say_what_is_missing(verdict: Verdict, reason: str):
    held = look(PLAN, START, 600, verdict)

    assert (held.state, held.step, held.reason) == (RolloutState.INCONCLUSIVE, 0, reason)
    assert look(PLAN, held, 1, PASS).step == 1


def test_paused_rollout_goes_on_only_when_told_to():
    paused = pause(START, "ada: lunch")
    assert look(PLAN, paused, 9999, PASS) == paused

    resumed = resume(paused, "ada: back")
    assert look(PLAN, resumed, 600, PASS).step == 1


def test_challenger_that_cannot_answer_pauses_the_rollout():
    stopped = fell_back(START, "its engine is down")

    assert (stopped.state, stopped.reason) == (RolloutState.PAUSED, "its engine is down")


@pytest.mark.parametrize(
    "over", [RolloutState.PASSED, RolloutState.ROLLED_BACK, RolloutState.ABORTED]
)
def test_what_is_over_stays_so(over: RolloutState):
    ended = RolloutProgress(over, 2)

    assert look(PLAN, ended, 600, FAIL) == ended
    assert fell_back(ended, "down") == ended
    for change in (pause, resume, abort):
        with pytest.raises(RolloutMoveRefused, match=over):
            change(ended, "please")


def test_only_a_paused_rollout_can_be_resumed():
    with pytest.raises(RolloutMoveRefused, match="RUNNING"):
        resume(START, "on")


def test_aborting_gives_everybody_the_champion_again():
    assert abort(look(PLAN, START, 600, PASS), "ada: no").share(PLAN) == 0.0


@given(LOOKS)
def test_share_only_ever_grows_by_one_step_or_falls_to_nothing(
    looks: list[tuple[float, Verdict]],
):
    progress = START
    for seconds, verdict in looks:
        before, progress = progress, look(PLAN, progress, seconds, verdict)
        if progress.state is RolloutState.ROLLED_BACK:
            assert progress.share(PLAN) == 0.0
        else:
            assert progress.step - before.step in (0, 1)
            assert progress.share(PLAN) >= before.share(PLAN)
        if progress.step > before.step:
            assert verdict is PASS
            assert before.watched_seconds + seconds >= PLAN.every_seconds
        assert progress.reason


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_looking_often_comes_to_the_same_as_looking_once(parts: list[float]):
    often = START
    for seconds in parts:
        often = look(PLAN, often, seconds, OPEN)
    once = look(PLAN, START, sum(parts), OPEN)

    assert often.watched_seconds == pytest.approx(once.watched_seconds)
    if abs(once.watched_seconds - PLAN.every_seconds) > 1e-6:
        assert often.state is once.state


def test_time_cannot_run_backwards():
    with pytest.raises(ValueError, match="monotonic"):
        look(PLAN, START, -1, PASS)


@pytest.mark.parametrize(
    ("steps", "every", "alpha", "words"),
    [
        ((), 600, 0.05, "percentages"),
        ((0.0, 0.5), 600, 0.05, "over 0"),
        ((0.5, 1.5), 600, 0.05, "to 100"),
        ((0.5, 0.5), 600, 0.05, "larger than the one before"),
        ((0.5, 1.0), 0, 0.05, "A step of 0 s"),
        ((0.5, 1.0), math.inf, 0.05, "A step of inf s"),
        ((0.5, 1.0), math.nan, 0.05, "A step of nan s"),
        ((0.5, 1.0), 1e12, 0.05, "366 days"),
        ((0.5, 1.0), 5e-324, 0.05, "366 days"),
        ((0.5, 1.0), 600, 0.7, "alpha"),
        ((0.5, 1.0), 600, math.nan, "alpha"),
        ((0.5, 1.0), 600, 5e-324, "alpha"),
        ((5e-324, 1.0), 600, 0.05, "0.0001%"),
        ((0.5, math.nan), 600, 0.05, "to 100"),
        ((0.5, 1 - 1e-16), 600, 0.05, "as far from 100"),
        (tuple(i / 200 for i in range(1, 102)), 600, 0.05, "101 steps"),
    ],
)
def test_plan_that_cannot_be_followed_is_refused(
    steps: tuple[float, ...], every: float, alpha: float, words: str
):
    with pytest.raises(InvalidRequest, match=words):
        RolloutPlan(steps, every, GATES, alpha)


def test_steps_are_read_from_percentages():
    assert parse_steps(["1", "10", "50", "100"]) == (0.01, 0.1, 0.5, 1.0)
    with pytest.raises(InvalidRequest, match="ten"):
        parse_steps(["ten"])


def test_plans_are_read_back_as_they_were_kept():
    shares = (("merged", 0.5), ("champion", 0.5))
    experiment = ExperimentPlan(shares, GATES, 0.1, UnitRule(3, 60.0))

    assert from_json(to_json(PLAN)) == PLAN
    assert from_json(to_json(experiment)) == experiment


@pytest.mark.parametrize(
    ("shares", "gates", "words"),
    [
        ((("a", 0.5), ("b", 0.5)), GATES, "'champion'"),
        ((("champion", 1.0),), GATES, "'champion'"),
        ((("a", 0.6), ("champion", 0.5)), GATES, "add up to 1.1"),
        ((("a", 0.5), ("champion", 0.5)), (), "needs a question"),
        ((("a", 5e-324), ("champion", 1.0)), GATES, "at least 1e-06"),
        ((("a", math.nan), ("champion", 0.5)), GATES, "at least 1e-06"),
        (tuple((f"a{i}", 1 / 21) for i in range(21)), GATES, "21 arms"),
        ((("a", 0.5), ("champion", 0.5)), GATES * 21, "gates are too many"),
    ],
)
def test_experiment_that_could_show_nothing_is_refused(shares: tuple, gates: tuple, words: str):
    with pytest.raises(InvalidRequest, match=words):
        ExperimentPlan(shares, gates)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (UnitRule(0, 60.0), "0 values"),
        (UnitRule(1001, 60.0), "1001 values"),
        (UnitRule(5, math.inf), "window of inf s"),
        (UnitRule(5, -1.0), "window of -1 s"),
    ],
)
def test_rule_by_which_no_unit_counts_is_refused(rule: UnitRule, words: str):
    with pytest.raises(InvalidRequest, match=words):
        ExperimentPlan((("a", 0.5), ("champion", 0.5)), GATES, rule=rule)


FINE = to_json(PLAN)


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "{}",
        "[]",
        "null",
        "no JSON",
        '{"type":"rollout","future_field":1}',
        FINE.replace("600.0", "null"),
        FINE.replace("600.0", "1e999"),
        FINE.replace("error_rate", "gone_metric"),
        FINE.replace("0.01,", "5e-324,"),
        FINE.replace('"rollout"', '"wager"'),
    ],
)
def test_what_was_kept_and_cannot_be_followed_is_unreadable_whatever_it_is(kept: str):
    assert kept != FINE
    with pytest.raises(UnreadablePlan):
        from_json(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "experiment"},
        {"status": TrialStatus("RUNNING", step=4)},
        {"status": TrialStatus("RUNNING", step=-1)},
        {"status": TrialStatus("DREAMING")},
        {"status": TrialStatus("RUNNING", watched_seconds=math.inf)},
        {"arms": (Arm(1, CHAMPION, None, "unmerged", 0.0),)},
    ],
)
def test_plan_that_does_not_fit_its_trial_is_unreadable(change: dict[str, Any]):
    at = datetime(2026, 11, 23, tzinfo=UTC)
    arms = tuple(
        Arm(i, name, None, "unmerged", 0.0) for i, name in enumerate(("challenger", CHAMPION))
    )
    adapter = AdapterName("acme", "support")
    trial = Trial(1, "rollout", adapter, "s", FINE, arms, TrialStatus("RUNNING"), at, at, None)
    assert plan_of(trial) == PLAN
    with pytest.raises(UnreadablePlan):
        plan_of(replace(trial, **change))


def test_several_challengers_share_the_error():
    shares = (("a", 0.3), ("b", 0.3), ("champion", 0.4))

    assert ExperimentPlan(shares, GATES, 0.05).question.alpha == 0.025
