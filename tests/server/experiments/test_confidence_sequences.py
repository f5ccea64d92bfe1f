import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.server.experiments.confidence_sequences import (
    LEAST_UNITS,
    QuantileWalk,
    ShareBet,
    bet_above,
    bet_below,
    mean_limits,
    unbounded_mean,
)
from loragate.server.experiments.metrics import METRICS
from loragate.server.experiments.non_inferiority import block_size, pair
from loragate.server.experiments.sample_ratio import sample_ratio
from loragate.server.experiments.superiority import ratio_of_means, ratio_of_quantiles
from loragate.server.experiments.tally import ArmTally, Sample

ALPHA = 0.05
ENOUGH = math.log(1 / ALPHA)
VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.array)


@given(VALUES, st.floats(0.05, 0.95))
def test_limit_of_a_mean_is_where_the_bet_refutes(values: np.ndarray, mean: float):
    lower, upper = mean_limits(values, ALPHA)

    assert 0 <= lower <= values.mean() + 1e-6 <= upper + 2e-6 <= 1 + 2e-6
    if abs(mean - lower) > 1e-4:
        assert (bet_above(values, mean)[-1] >= ENOUGH) == (mean < lower)
    if abs(mean - upper) > 1e-4:
        assert (bet_below(values, mean)[-1] >= ENOUGH) == (mean > upper)


@pytest.mark.parametrize("mean", [0.2, 0.5, 0.9])
def test_bet_is_fair_where_the_claim_is_true(mean: float):
    # Every outcome of 9 coins, weighed by its probability: the expected fortune is 1 exactly.
    coins = (np.arange(512)[:, None] >> np.arange(9)) & 1
    weights = mean ** coins.sum(1) * (1 - mean) ** (9 - coins.sum(1))
    for bet in (bet_above, bet_below):
        fortunes = [math.exp(bet(row.astype(float), mean)[-1]) for row in coins]
        assert float(np.dot(weights, fortunes)) == pytest.approx(1)
    mixed = np.exp([float(ShareBet(0.3).fortune(row.sum(), 9.0, mean)) for row in coins])
    assert float(np.dot(weights, mixed)) == pytest.approx(1)


@given(st.floats(0.01, 0.99), st.integers(1, 500), st.floats(0, 1), st.floats(0.02, 0.98))
def test_limits_of_a_share_are_where_the_bet_refutes(
    expected: float, units: int, part: float, share: float
):
    bet, inside = ShareBet(expected), part * units
    lower, upper = bet.limits(inside, units, ALPHA)

    if min(abs(share - lower), abs(share - upper)) > 1e-4:
        is_refuted = float(bet.fortune(inside, units, share)) >= ENOUGH
        assert is_refuted == (not lower < share < upper)


def test_limits_close_in_on_the_truth():
    values = np.random.default_rng(1).beta(2, 1, 20_000)
    widths = [
        np.diff(mean_limits(values[:count], ALPHA)).item() for count in (20, 200, 2000, 20_000)
    ]

    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.02
    lower, upper = mean_limits(values, ALPHA)
    assert lower < 2 / 3 < upper


def test_nothing_is_known_of_nothing():
    empty = Sample.of([])

    assert mean_limits(np.array([]), ALPHA) == (0.0, 1.0)
    assert ShareBet(0.1).limits(0.0, 0, ALPHA) == (0.0, 1.0)
    assert QuantileWalk.of(empty, 0.95).limits(ALPHA) == (0.0, math.inf)
    assert ratio_of_quantiles(empty, Sample.of([1.0]), 0.95, ALPHA).upper == math.inf


def test_quantile_and_its_limits_are_values_of_the_sample():
    values = np.random.default_rng(2).lognormal(0, 0.5, 3000)
    walk = QuantileWalk.of(Sample.of(values), 0.95)
    lower, upper = walk.limits(ALPHA)

    assert walk.estimate() == pytest.approx(np.quantile(values, 0.95), rel=0.01)
    assert lower < math.exp(0.5 * 1.645) < upper < 1.2 * lower


def test_unit_with_many_values_moves_a_quantile_no_more_than_one_with_few():
    chatty = Sample(np.array([9.0] * 50 + [1.0, 1.0]), np.array([0] * 50 + [1, 2]))

    assert QuantileWalk.of(chatty, 0.5).estimate() == 1.0


def test_little_is_said_of_a_mean_without_bounds_from_few_units():
    values = np.random.default_rng(3).lognormal(0, 0.5, LEAST_UNITS)

    assert unbounded_mean(values[:-1], ALPHA).upper == math.inf
    assert math.isfinite(unbounded_mean(values, ALPHA).upper)


def arm(name: str, values: np.ndarray, share: float = 0.5, metric: str = "ttft") -> ArmTally:
    return ArmTally(name, share, len(values), len(values), samples={metric: Sample.of(values)})


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7])
def test_ratio_of_arms_is_found_by_mean_and_by_quantile(ratio: float):
    random = np.random.default_rng(4)
    ours = arm("challenger", ratio * random.lognormal(0, 0.4, 4000))
    theirs = arm("champion", random.lognormal(0, 0.4, 4000))

    by_mean = ratio_of_means(ours, theirs, "ttft", ALPHA)
    by_p95 = ratio_of_quantiles(ours.sample("ttft"), theirs.sample("ttft"), 0.95, ALPHA)
    for found in (by_mean, by_p95):
        assert found.lower < ratio < found.upper
        assert found.lower < found.estimate < found.upper < 1.5 * found.lower


def test_ratio_of_quantiles_turned_around_is_its_inverse():
    random = np.random.default_rng(5)
    ours, theirs = (
        Sample.of(random.lognormal(0, 0.4, 900)),
        Sample.of(random.lognormal(0, 0.4, 700)),
    )

    there = ratio_of_quantiles(ours, theirs, 0.9, ALPHA)
    back = ratio_of_quantiles(theirs, ours, 0.9, ALPHA)
    assert (there.lower, there.upper) == pytest.approx((1 / back.upper, 1 / back.lower))


def test_small_arm_is_paired_with_means_of_the_large_one():
    ours = arm("challenger", np.array([1.0, 0.0]), 0.25, "thumbs")
    theirs = arm("champion", np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]), 0.75, "thumbs")

    pairs = pair(ours, theirs, METRICS["thumbs"])
    assert pairs.differences.tolist() == pytest.approx([1 / 3, -1.0])
    assert (block_size(ours, theirs), block_size(theirs, ours)) == (1, 3)


def test_sample_ratio_tells_a_lost_tenth_from_chance():
    def counts(ours: int, theirs: int) -> tuple[ArmTally, ArmTally]:
        return ArmTally("a", 0.5, ours), ArmTally("b", 0.5, theirs)

    assert not sample_ratio(counts(1000, 1060)).is_mismatch
    assert sample_ratio(counts(5000, 4500)).is_mismatch
    assert sample_ratio(counts(4, 0)).p_value is None
