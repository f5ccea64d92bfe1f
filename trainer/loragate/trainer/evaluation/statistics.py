"""Metrics as a formula of sums over rows, and bootstrap intervals for all of them.

A metric such as BLEU is no mean over rows, but it is a formula of sums over rows, as are loss, F1
and every mean. Resampling rows is then a product of two matrices, and two systems that answered the
same rows are resampled together, which a paired difference needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]
Formula = Callable[[Floats], Floats]
"""From sums, whose last axis is a statistic's columns, to values, without that axis."""


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """An estimate and the ends of its interval, which covers the chance in the choice of rows and
    nothing else.
    """

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Statistic:
    """A metric over rows. `rows` is float64 of (rows, columns); `formula` takes the sums of the
    columns. `is_share` marks a mean of zeros and ones.
    """

    rows: Floats
    formula: Formula
    is_share: bool = False

    @property
    def value(self) -> float:
        return float(self.formula(self.rows.sum(axis=0)))


def mean(values: Sequence[float] | Floats) -> Statistic:
    """The mean of one value a row."""
    return ratio(values, [1.0] * len(values))


def share(claims: Sequence[bool]) -> Statistic:
    """The share of rows whose claim is true, from 0 to 1."""
    return Statistic(mean([float(claim) for claim in claims]).rows, _ratio, is_share=True)


def ratio(
    numerators: Sequence[float] | Floats, denominators: Sequence[float] | Floats
) -> Statistic:
    """The sum of the numerators over that of the denominators, such as nats over tokens."""
    return Statistic(np.column_stack([numerators, denominators]).astype(np.float64), _ratio)


def exp(statistic: Statistic) -> Statistic:
    """e to the power of the metric."""
    return Statistic(statistic.rows, lambda sums: np.exp(statistic.formula(sums)))


def _ratio(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


class Bootstrap:
    """Percentile intervals of statistics over `rows` rows, all from the same resamples, so that
    their differences are paired. `confidence` is between 0 and 1.

    Counting how often each row is drawn makes a resample a product of matrices; scipy's bootstrap
    gathers the rows of each and takes ten times as long on a large test set.
    """

    def __init__(self, rows: int, confidence: float, resamples: int, seed: int) -> None:
        self._confidence = confidence
        random = np.random.default_rng(seed)
        # int64 of (resamples, rows): how often each row is drawn.
        self._draws = random.multinomial(rows, np.full(rows, 1 / rows), size=resamples)

    def interval(self, statistic: Statistic) -> ConfidenceInterval:
        values = statistic.formula(self._draws @ statistic.rows)
        low, high = self._tails(values)
        if statistic.is_share and low == high:
            # Where all rows are alike every resample is too, so the interval is computed exactly.
            count = int(statistic.rows[:, 0].sum())
            exact = binomtest(count, len(statistic.rows)).proportion_ci(self._confidence)
            low, high = float(exact.low), float(exact.high)
        return ConfidenceInterval(statistic.value, low, high)

    def difference(self, one: Statistic, other: Statistic) -> ConfidenceInterval:
        """Of `one` minus `other`, which are over the same rows in the same order."""
        values = one.formula(self._draws @ one.rows) - other.formula(self._draws @ other.rows)
        return ConfidenceInterval(one.value - other.value, *self._tails(values))

    def _tails(self, values: Floats) -> tuple[float, float]:
        tail = (1 - self._confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)
