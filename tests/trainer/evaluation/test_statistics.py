"""Intervals that hold the truth as often as they say."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from loragate.trainer.evaluation.statistics import (
    Bootstrap,
    bounded_mean,
    exp,
    mean,
    paired_share_interval,
    ratio,
    share,
    share_interval,
)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda random: mean(random.normal(2.0, 1.0, 80)), 2.0),
        (lambda random: share(random.random(80) < 0.7), 0.7),
        (lambda random: ratio(*_losses(random)), 0.5),
    ],
    ids=["mean", "share", "loss by the token"],
)
def test_nineteen_of_twenty_intervals_hold_the_truth(draw, truth):
    random = np.random.default_rng(5)
    bootstrap = Bootstrap(80, 0.95, 1000, seed=1)
    intervals = [bootstrap.interval(draw(random)) for _ in range(600)]

    covered = np.mean([each.low <= truth <= each.high for each in intervals])

    assert 0.91 <= covered <= 0.975


def _losses(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    tokens = random.integers(5, 60, 80).astype(np.float64)
    return random.gamma(tokens, 0.5), tokens


def test_paired_difference_is_narrower_than_two_intervals_when_rows_are_hard_for_both():
    random = np.random.default_rng(0)
    hardness = random.normal(3.0, 2.0, 100)
    one, other = mean(hardness - 0.2 + random.normal(0, 0.1, 100)), mean(hardness)
    bootstrap = Bootstrap(100, 0.95, 1000, seed=0)

    difference = bootstrap.difference(one, other)

    alone = bootstrap.interval(one)
    assert difference.excludes_zero
    assert difference.high - difference.low < (alone.high - alone.low) / 5


def test_all_rows_right_still_leaves_doubt():
    interval = Bootstrap(20, 0.95, 1000, seed=0).interval(share([True] * 20))

    assert interval.estimate == interval.high == 1.0
    assert 0.8 < interval.low < 0.9


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    values = mean(np.random.default_rng(0).normal(size=50))

    first, again, other = (Bootstrap(50, 0.95, 500, seed).interval(values) for seed in (1, 1, 2))

    assert first == again != other


def test_perplexity_is_the_exponential_of_the_loss():
    loss = ratio([2.0, 4.0], [2, 2])

    assert exp(loss).value == pytest.approx(np.exp(1.5))


def test_ten_rows_on_which_both_agree_leave_doubt_about_the_difference():
    same = share([True] * 6 + [False] * 4)

    found = Bootstrap(10, 0.95, 500, seed=0).difference(same, same)

    assert (found.low, found.high) == pytest.approx((-0.2775, 0.2775), abs=1e-4)


def test_all_right_against_all_wrong_is_not_exactly_one():
    found = Bootstrap(10, 0.95, 500, seed=0).difference(share([True] * 10), share([False] * 10))

    assert found.low < 0.6
    assert (found.estimate, found.high) == (1.0, 1.0)


@pytest.mark.parametrize("truth", [0.9, 0.95, 0.98])
@pytest.mark.parametrize("rows", [10, 30, 100])
def test_share_intervals_hold_the_truth_as_often_as_they_say_near_one(rows: int, truth: float):
    covered = sum(
        comb(rows, count) * truth**count * (1 - truth) ** (rows - count)
        for count in range(rows + 1)
        if (found := share_interval(count, rows, 0.95)).low <= truth <= found.high
    )

    assert covered > 0.91


@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.05), (0.1, 0.0), (0.3, 0.1), (0.02, 0.1)])
def test_difference_intervals_hold_the_truth_as_often_as_they_say(gained: float, lost: float):
    rows = 25
    covered = 0.0
    for one in range(rows + 1):
        for other in range(rows + 1 - one):
            found = paired_share_interval(one, other, rows, 0.95)
            if found.low <= gained - lost <= found.high:
                same = rows - one - other
                ways = comb(rows, one) * comb(rows - one, other)
                covered += ways * gained**one * lost**other * (1 - gained - lost) ** same

    assert covered > 0.92


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_difference_interval_is_mcnemars_test_turned_around(gained: int, lost: int, same: int):
    rows = gained + lost + same
    if rows == 0:
        return
    found = paired_share_interval(gained, lost, rows, 0.95)
    mirrored = paired_share_interval(lost, gained, rows, 0.95)

    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    squared = (gained - lost) ** 2 / max(gained + lost, 1)
    if abs(squared - 1.959964**2) > 1e-6:
        assert found.excludes_zero == (squared > 1.959964**2)


@given(st.integers(1, 60), st.data())
def test_share_interval_is_scipys_wilson_interval(rows: int, data: st.DataObject):
    count = data.draw(st.integers(0, rows))
    theirs = binomtest(count, rows).proportion_ci(0.9, method="wilson")

    found = Bootstrap(rows, 0.9, 100, seed=0).interval(
        share([place < count for place in range(rows)])
    )

    assert (found.low, found.high) == (theirs.low, theirs.high)


def test_bounded_metric_of_rows_that_are_all_alike_has_the_doubt_of_a_share():
    bootstrap = Bootstrap(20, 0.95, 500, seed=0)
    perfect = bounded_mean([100.0] * 20, 0, 100)

    alone, against = bootstrap.interval(perfect), bootstrap.difference(perfect, perfect)

    assert alone.low == pytest.approx(100 * share_interval(20, 20, 0.95).low)
    assert alone.high == 100
    assert (against.low, against.high) == pytest.approx((-16.11, 16.11), abs=0.01)


def test_few_rows_give_the_wider_interval_that_they_deserve():
    random = np.random.default_rng(3)
    samples = random.normal(2.0, 1.0, (800, 6))
    bootstrap = Bootstrap(6, 0.95, 1000, seed=1)

    covered = np.mean(
        [
            found.low <= 2.0 <= found.high
            for row in samples
            if (found := bootstrap.interval(mean(row)))
        ]
    )

    assert covered > 0.92  # plain percentiles: 0.86
