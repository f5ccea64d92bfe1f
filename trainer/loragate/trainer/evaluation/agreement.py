"""How far raters agree: Krippendorff's alpha, ordinal for numbers whose order counts, and nominal
for labels.

1 is full agreement, 0 what chance gives, and less than 0 more disagreement than chance. Where no
two ratings of one thing can be compared, or all ratings are the same number, it is undefined:
nothing was there to agree or disagree on. (K. Krippendorff, Content Analysis, 2004, chapter 11.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from loragate.trainer.evaluation.statistics import expanded_tail, unseen_share

Floats = NDArray[np.float64]
Scale = Literal["ordinal", "nominal"]
T = TypeVar("T", int, float, str)


@dataclass(frozen=True, slots=True)
class Agreement:
    """`units` is the number of things that two raters or more have rated; `alpha` is None where it
    is undefined, and its interval where that is.
    """

    alpha: float | None
    units: int
    low: float | None = None
    high: float | None = None

    @property
    def sentence(self) -> str:
        """`0.72 (0.55 to 0.84)`, or why there is no number."""
        if self.alpha is None:
            why = "nothing was rated twice" if not self.units else "all ratings are the same"
            return f"undefined: {why}"
        if self.low is None or self.high is None:
            return f"{self.alpha:.2f}"
        return f"{self.alpha:.2f} ({self.low:.2f} to {self.high:.2f})"


def agreement(
    units: Iterable[Sequence[T]],
    confidence: float,
    resamples: int,
    seed: int,
    scale: Scale = "ordinal",
) -> Agreement:
    """A unit has the ratings of one thing. The interval is of units that are drawn anew."""
    pairable = [unit for unit in units if len(unit) > 1]
    if not pairable:
        return Agreement(None, 0)
    values = sorted({value for unit in pairable for value in unit})
    coincidences = np.array([_coincidences(unit, values) for unit in pairable])
    alpha = _alpha(coincidences.sum(axis=0), scale)
    if alpha is None:
        return Agreement(None, len(pairable))
    count = len(pairable)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    sums = np.tensordot(draws.astype(np.float64), coincidences, axes=1)
    found = [each for each in (_alpha(each, scale) for each in sums) if each is not None]
    if 2 * len(found) < resamples:
        return Agreement(alpha, count)
    tail, unseen = expanded_tail(count, confidence), unseen_share(count, confidence)
    low, high = np.quantile(found, [tail, 1 - tail])
    return Agreement(
        alpha,
        count,
        max(-1.0, min(float(low), alpha - unseen * (alpha + 1))),
        min(1.0, max(float(high), alpha + unseen * (1 - alpha))),
    )


def _coincidences(unit: Sequence[T], values: Sequence[T]) -> Floats:
    """float64 of (values, values): how often two ratings of the unit are this pair."""
    counts = np.array([unit.count(value) for value in values], dtype=np.float64)
    return (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)


def _alpha(coincidences: Floats, scale: Scale) -> float | None:
    totals = coincidences.sum(axis=0)
    if scale == "nominal":
        distances = 1.0 - np.eye(len(totals))
    else:
        # How many ratings lie between two values, themselves by half.
        middles = np.cumsum(totals) - totals / 2
        distances = np.subtract.outer(middles, middles) ** 2
    expected = float(totals @ distances @ totals)
    if expected <= 0:
        return None
    observed = float((coincidences * distances).sum())
    return 1.0 - (float(totals.sum()) - 1) * observed / expected
