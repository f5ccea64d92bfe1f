import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.server.errors import InvalidRequest
from loragate.server.experiments.metrics import Outcome, check_feedback
from loragate.server.experiments.tally import Sample, Tally, UnitRule


def counted(tally: Tally, now: float) -> list[float]:
    return tally.at("arm", 1.0, now).sample("ttft").means().tolist()


def test_unit_counts_once_as_the_mean_of_its_first_values():
    tally = Tally(UnitRule(values=2))
    tally.expose("ada", "user", 0)
    for at, value in enumerate([1.0, 3.0, 100.0]):
        tally.expose("ada", "user", at)
        tally.observe("ada", "ttft", value, at)

    assert counted(tally, 10) == [2.0]
    assert tally.at("arm", 1.0, 10).units == 1
    assert tally.at("arm", 1.0, 10).requests == 4


def test_unit_that_gives_less_counts_when_its_window_is_over_and_then_never_changes():
    tally = Tally(UnitRule(values=2, window_seconds=60))
    tally.expose("ada", "user", 0)
    tally.observe("ada", "ttft", 1.0, 1)

    assert counted(tally, 59) == []
    assert counted(tally, 60) == [1.0]
    tally.expose("ada", "user", 61)
    tally.observe("ada", "ttft", 5.0, 62)
    assert counted(tally, 1000) == [1.0]


def test_units_come_in_the_order_in_which_they_counted_whenever_one_looks():
    def fed(looks: bool) -> list[float]:
        tally = Tally(UnitRule(values=2, window_seconds=10))
        for at, unit, value in [(0, "a", 1.0), (1, "b", 2.0), (5, "b", 2.0), (20, "c", 3.0)]:
            tally.expose(unit, "user", at)
            tally.observe(unit, "ttft", value, at)
            if looks:
                counted(tally, at)
        return counted(tally, 100)

    assert fed(looks=True) == fed(looks=False) == [2.0, 1.0, 3.0]


def test_value_of_a_unit_that_was_never_exposed_adds_nothing():
    tally = Tally(UnitRule())
    tally.observe("ada", "ttft", 1.0, 0)

    assert counted(tally, 9) == []


def test_clock_that_is_set_back_loses_nothing():
    tally = Tally(UnitRule())
    tally.expose("ada", "user", 1000)
    tally.expose("bob", "user", 10)
    tally.observe("ada", "ttft", 1.0, 11)
    tally.observe("bob", "ttft", 2.0, 12)

    assert counted(tally, 20) == [1.0, 2.0]


def test_fallbacks_are_counted_apart():
    tally = Tally(UnitRule())
    tally.expose("ada", "user", 0)
    tally.fall_back()

    seen = tally.at("arm", 1.0, 9)
    assert (seen.units, seen.requests, seen.fallbacks) == (1, 1, 1)
    assert seen.sample("error_rate").size == 0


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=4), min_size=1, max_size=8))
def test_units_weigh_the_same_however_many_values_they_gave(units: list[list[float]]):
    tally = Tally(UnitRule(values=9, window_seconds=5))
    for name, values in enumerate(units):
        tally.expose(str(name), "user", 0)
        for value in values:
            tally.observe(str(name), "ttft", value, 1)

    sample = tally.at("arm", 1.0, 99).sample("ttft")
    assert sample.size == len(units)
    assert sample.weights().sum() == pytest.approx(len(units))
    assert sorted(sample.means()) == pytest.approx(sorted(sum(v) / len(v) for v in units))


def test_sample_of_the_first_units_is_what_was_there_then():
    sample = Sample.of([3.0, 1.0, 2.0])

    assert sample.first(2).means().tolist() == [3.0, 1.0]
    assert sample.first(0).size == 0


def test_failed_request_has_no_speed():
    failed = dict(Outcome(True, 0.001, 3, 0.001, 0.001).observations())
    answered = dict(Outcome(False, 2.0, 30, 0.5, 0.05).observations())

    assert failed == {"error_rate": 1.0}
    assert answered == {
        "error_rate": 0.0,
        "duration": 2.0,
        "ttft": 0.5,
        "itl": 0.05,
        "tokens_per_second": 15.0,
    }


@pytest.mark.parametrize(
    ("metric", "value", "comment"),
    [("thumbs", 1, ""), ("rating", 4.5, ""), ("escalated", 0, ""), ("comment", None, "too long")],
)
def test_feedback_within_its_limits_is_taken(metric: str, value: float | None, comment: str):
    check_feedback(metric, value, comment)


@pytest.mark.parametrize(
    ("metric", "value", "comment", "param"),
    [
        ("thumbs", 0.5, "", "value"),
        ("rating", 6, "", "value"),
        ("rating", None, "", "value"),
        ("rating", float("nan"), "", "value"),
        ("ttft", 1, "", "metric"),
        ("warmth", 1, "", "metric"),
        ("comment", None, "", "comment"),
        ("comment", 1, "good", "comment"),
    ],
)
def test_feedback_that_means_nothing_is_refused_by_field(
    metric: str, value: float | None, comment: str, param: str
):
    with pytest.raises(InvalidRequest) as caught:
        check_feedback(metric, value, comment)

    assert caught.value.param == param
