"""Metrics as a formula of sums over rows, and intervals for all of them.

A metric such as BLEU is no mean over rows, but it is a formula of sums over rows, as are loss, F1
and every mean. Resampling rows is then a product of two matrices, and two systems that answered the
same rows are resampled together, which a paired difference needs.

Shares of rows have better intervals than resampling gives: Wilson's, and for the difference of two
shares over the same rows Tango's. Where rows are few or all alike, resamples show less doubt than
there is; see `Bootstrap` for what is done about it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t

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
    columns. `is_share` marks a mean of zeros and ones. `bounds` are the lowest and highest value
    that the metric can have, if it is bounded. `parts` are the numbers of rows of each part, for a
    mean over parts of the rows, such as labels.
    """

    rows: Floats
    formula: Formula
    is_share: bool = False
    bounds: tuple[float, float] | None = None
    parts: tuple[int, ...] = ()

    @property
    def value(self) -> float:
        return float(self.formula(self.rows.sum(axis=0)))


def mean(values: Sequence[float] | Floats) -> Statistic:
    """The mean of one value a row."""
    return ratio(values, [1.0] * len(values))


def bounded_mean(values: Sequence[float] | Floats, low: float, high: float) -> Statistic:
    """The mean of one value a row, which is never below `low` and never above `high`."""
    return dataclasses.replace(mean(values), bounds=(low, high))


def share(claims: Sequence[bool]) -> Statistic:
    """The share of rows whose claim is true, from 0 to 1."""
    return dataclasses.replace(
        bounded_mean([float(claim) for claim in claims], 0, 1), is_share=True
    )


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


def share_interval(count: int, rows: int, confidence: float) -> ConfidenceInterval:
    """Wilson's score interval of a share."""
    found = binomtest(count, rows).proportion_ci(confidence, method="wilson")
    return ConfidenceInterval(count / rows, float(found.low), float(found.high))


def paired_share_interval(
    gained: int, lost: int, rows: int, confidence: float
) -> ConfidenceInterval:
    """Tango's score interval of the difference of two shares over the same rows.

    `gained` is the number of rows that count for the first share only, `lost` for the second only.
    It leaves out zero exactly where McNemar's test rejects it. (T. Tango, Statistics in Medicine
    17, 1998.)
    """
    difference = (gained - lost) / rows
    bound = float(norm.ppf((1 + confidence) / 2))

    def score(delta: float) -> float:
        """How far the counts are from a true difference of `delta`, in standard errors."""
        a = 2 * rows
        b = -gained - lost + (a - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        # The likeliest share of rows that only the second has, if the difference is `delta`.
        only_second = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = rows * (2 * only_second + delta * (1 - delta))
        distance = gained - lost - rows * delta
        return distance / math.sqrt(variance) if variance > 1e-12 else math.copysign(9e9, distance)

    # The score falls as `delta` grows.
    low = _where(lambda delta: score(delta) <= bound, -1.0, difference)
    high = _where(lambda delta: score(delta) <= -bound, difference, 1.0)
    return ConfidenceInterval(difference, low, high)


def _where(is_reached: Callable[[float], bool], low: float, high: float) -> float:
    """The first place between `low` and `high` where a condition holds that stays true behind it;
    `high` where it holds nowhere.
    """
    for _ in range(50):
        middle = (low + high) / 2
        if is_reached(middle):
            high = middle
        else:
            low = middle
    return high


def unseen_share(rows: int, confidence: float) -> float:
    """How large a share of all possible rows may be of a kind that is in none of `rows`, at most:
    the upper end of Wilson's interval of 0.
    """
    squared = float(norm.ppf((1 + confidence) / 2)) ** 2
    return squared / (rows + squared)


class Bootstrap:
    """Intervals of statistics over `rows` rows. `confidence` is between 0 and 1.

    Shares have Wilson's and Tango's intervals. For others the rows are drawn anew, for all
    statistics alike, so that their differences are paired. Two corrections make the percentiles of
    the resamples honest: they are moved outwards as Student's t asks for so few rows (Hesterberg's
    expanded percentile interval, The American Statistician 69, 2015), and a bounded metric's
    interval also covers what rows could do of which none was drawn (`unseen_share`): with Wilson's
    interval of a share, that is the same where all rows agree.

    Counting how often each row is drawn makes a resample a product of matrices; scipy's bootstrap
    gathers the rows of each and takes ten times as long on a large test set.
    """

    def __init__(self, rows: int, confidence: float, resamples: int, seed: int) -> None:
        self._rows = rows
        self._confidence = confidence
        self._tail = expanded_tail(rows, confidence)
        random = np.random.default_rng(seed)
        # int64 of (resamples, rows): how often each row is drawn.
        self._draws = random.multinomial(rows, np.full(rows, 1 / rows), size=resamples)

    def interval(self, statistic: Statistic) -> ConfidenceInterval:
        if statistic.is_share:
            count = round(float(statistic.rows[:, 0].sum()))
            return share_interval(count, self._rows, self._confidence)
        found = self._between(statistic.value, statistic.formula(self._draws @ statistic.rows))
        return self._with_unseen(found, statistic, statistic.bounds)

    def difference(self, one: Statistic, other: Statistic) -> ConfidenceInterval:
        """Of `one` minus `other`, which are over the same rows in the same order."""
        if one.is_share and other.is_share:
            more = one.rows[:, 0] - other.rows[:, 0]
            gained, lost = int((more > 0).sum()), int((more < 0).sum())
            return paired_share_interval(gained, lost, self._rows, self._confidence)
        values = one.formula(self._draws @ one.rows) - other.formula(self._draws @ other.rows)
        found = self._between(one.value - other.value, values)
        width = one.bounds[1] - one.bounds[0] if one.bounds else None
        return self._with_unseen(found, one, (-width, width) if width is not None else None)

    def _between(self, estimate: float, values: Floats) -> ConfidenceInterval:
        low, high = np.quantile(values, [self._tail, 1 - self._tail])
        return ConfidenceInterval(estimate, float(low), float(high))

    def _with_unseen(
        self, found: ConfidenceInterval, statistic: Statistic, bounds: tuple[float, float] | None
    ) -> ConfidenceInterval:
        if bounds is None:
            return found
        # Parts are independent, so their doubts add as squares.
        parts = statistic.parts or (self._rows,)
        shares = [unseen_share(rows, self._confidence) for rows in parts]
        unseen = math.sqrt(sum(each * each for each in shares)) / len(parts)
        lowest, highest = bounds
        return ConfidenceInterval(
            found.estimate,
            min(found.low, found.estimate - unseen * (found.estimate - lowest)),
            max(found.high, found.estimate + unseen * (highest - found.estimate)),
        )


def expanded_tail(rows: int, confidence: float) -> float:
    """The share of resamples to leave out on either side."""
    if rows < 2:
        return 0.0
    quantile = float(student_t.ppf((1 + confidence) / 2, rows - 1))
    return float(norm.cdf(-quantile * math.sqrt(rows / (rows - 1))))
