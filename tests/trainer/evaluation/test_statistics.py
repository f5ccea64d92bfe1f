"""Intervals that hold the truth as often as they say."""

import numpy as np
import pytest

from loragate.trainer.evaluation.statistics import Bootstrap, exp, mean, ratio, share


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
