import math

import numpy as np
import pytest

from loragate.server.errors import InvalidRequest
from loragate.server.experiments.gates import GateAnswer, GateState, answer, parse_gate
from loragate.server.experiments.tally import ArmTally, Sample

HOLDS, FAILS, OPEN = GateState.HOLDS, GateState.FAILS, GateState.OPEN


@pytest.mark.parametrize(
    ("text", "metric", "level", "is_upper", "against", "bound"),
    [
        ("error_rate<1%", "error_rate", None, True, "number", 0.01),
        ("error_rate<=0.01", "error_rate", None, True, "number", 0.01),
        ("error_rate<champion+0.5%", "error_rate", None, True, "difference", 0.005),
        ("ttft_p95<1.2x", "ttft", 0.95, True, "ratio", 1.2),
        ("itl_p99 < 1.15x", "itl", 0.99, True, "ratio", 1.15),
        ("ttft_p50<800ms", "ttft", 0.5, True, "number", 0.8),
        ("duration_mean<2s", "duration", None, True, "number", 2.0),
        ("rating>=champion-0.1", "rating", None, False, "difference", -0.1),
        ("rating>=4.2", "rating", None, False, "number", 4.2),
        ("thumbs>=champion", "thumbs", None, False, "difference", 0.0),
        ("tokens_per_second_mean>1.05x", "tokens_per_second", None, False, "ratio", 1.05),
    ],
)
def test_gate_says_what_is_written(
    text: str, metric: str, level: float | None, is_upper: bool, against: str, bound: float
):
    gate = parse_gate(text)

    assert (gate.metric.name, gate.level, gate.is_upper) == (metric, level, is_upper)
    assert (gate.against, gate.bound) == (against, pytest.approx(bound))
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fast", "not a gate; write one as in"),
        ("warmth>1", "no metric 'warmth'; use one of error_rate"),
        ("ttft<1.2x", "say of what: ttft_p50"),
        ("thumbs_p95>=1%", "leave '_p95' out"),
        ("ttft_p95<800", "given in ms or s"),
        ("ttft_p95<champion+1", "by ratio"),
        ("error_rate<1.2x", "by difference"),
        ("rating>=champion-5%", "is no share"),
        ("error_rate<120%", "between 0 and 1"),
        ("rating>=champion-4", "between -4 and 4"),
        ("rating<=4", "write rating>=4"),
        ("tokens_per_second_mean<1x", "write tokens_per_second>=1x"),
        ("ttft_p95<fast", "'fast' is no bound"),
    ],
)
def test_gate_that_cannot_be_meant_is_refused_with_what_to_write(text: str, words: str):
    with pytest.raises(InvalidRequest) as caught:
        parse_gate(text)

    assert words in str(caught.value)
    assert caught.value.param == "gate"


def arm(name: str, metric: str, values: np.ndarray, share: float = 0.5) -> ArmTally:
    return ArmTally(name, share, len(values), len(values), samples={metric: Sample.of(values)})


def asked(text: str, ours: np.ndarray, theirs: np.ndarray | None = None) -> GateAnswer:
    gate = parse_gate(text)
    champion = None if theirs is None else arm("champion", gate.metric.name, theirs)
    return answer(gate, arm("challenger", gate.metric.name, ours), champion, 0.05, 0.025)


def times(count: int, factor: float = 1.0, seed: int = 0) -> np.ndarray:
    return factor * np.random.default_rng(seed).lognormal(0, 0.4, count)


@pytest.mark.parametrize(
    ("text", "ours", "theirs", "state"),
    [
        ("error_rate<1%", np.zeros(1000), None, HOLDS),
        ("error_rate<1%", np.ones(4), None, FAILS),
        ("error_rate<1%", np.zeros(20), None, OPEN),
        ("error_rate<champion+5%", np.zeros(900), np.zeros(900), HOLDS),
        ("error_rate<champion+5%", np.ones(40), np.zeros(40), FAILS),
        ("ttft_p95<1.2x", times(2000), times(2000, 2, seed=1), HOLDS),
        ("ttft_p95<1.2x", times(2000, 3), times(2000, seed=1), FAILS),
        ("ttft_p95<1.2x", times(30), times(30, seed=1), OPEN),
        ("ttft_p95<5s", times(2000), None, HOLDS),
        ("ttft_p95<500ms", times(200), None, FAILS),
        ("ttft_mean<1.5s", times(2000), None, HOLDS),
        ("ttft_mean<900ms", times(2000), None, FAILS),
        ("tokens_per_second_mean>1x", times(500, 2), times(500, seed=1), HOLDS),
        ("tokens_per_second_mean>1x", times(500), times(500, 2, seed=1), FAILS),
        ("rating>=champion-0.5", np.full(200, 4.0), np.full(200, 4.0), HOLDS),
        ("rating>=champion-0.5", np.full(90, 1.0), np.full(90, 5.0), FAILS),
        ("rating>=3", np.full(90, 5.0), None, HOLDS),
    ],
)
def test_gate_is_answered_by_what_the_arms_show(
    text: str, ours: np.ndarray, theirs: np.ndarray | None, state: GateState
):
    assert asked(text, ours, theirs).state is state


def test_gate_against_the_champion_holds_where_there_is_none_left():
    found = asked("ttft_p95<1.2x", times(5, 100))

    assert found.state is HOLDS
    assert found.interval.units == 0


def test_open_gate_says_in_words_what_is_missing():
    found = asked("error_rate<1%", np.zeros(100))

    assert found.missing == (
        "error_rate<1%: 0 % so far, between 0 % and 3.3 % after 100 units; "
        "about 260 more units of the challenger are needed"
    )
    assert asked("error_rate<1%", np.zeros(100 + (found.more_units or 0))).state is HOLDS
    assert asked("error_rate<1%", np.zeros(90 + (found.more_units or 0))).state is OPEN


def test_open_gate_says_which_arm_has_shown_nothing():
    assert (
        "no feedback 'rating' of champion yet"
        in asked("rating>=champion-0.1", np.ones(5), np.array([])).missing
    )
    assert "no ttft of challenger yet" in asked("ttft_p95<1s", np.array([])).missing


def test_gate_that_is_not_met_so_far_promises_nothing():
    found = asked("error_rate<1%", np.array([1.0] + [0.0] * 50))

    assert found.state is OPEN
    assert found.more_units is None
    assert "may not either" in found.missing


def test_needed_units_are_about_what_it_takes():
    random = np.random.default_rng(7)
    ours, theirs = ((random.random(4000) < 0.8).astype(float) for _ in range(2))

    found = asked("thumbs>=champion-5%", ours[:300], theirs[:300])
    assert found.state is OPEN
    assert found.more_units is not None
    total = 300 + found.more_units
    assert 500 < total < 3000
    assert asked("thumbs>=champion-5%", ours[: 2 * total], theirs[: 2 * total]).state is HOLDS


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        ("error_rate<1%", 0.0123, "1.23 %"),
        ("error_rate<champion+1%", -0.01, "-1 %"),
        ("ttft_p95<1s", 0.1234, "123.4 ms"),
        ("ttft_p95<1.2x", 1.236, "1.24x"),
        ("rating>=champion-0.1", 0.25, "+0.25"),
        ("rating>=4", math.inf, "unknown"),
    ],
)
def test_figures_are_shown_in_the_gates_unit(text: str, value: float, shown: str):
    assert parse_gate(text).shown(value) == shown
