"""Is the challenger faster, and by what factor? Two arms compared by the ratio of a mean or of a
quantile.
"""

import math

import numpy as np

from loragate.server.experiments.confidence_sequences import (
    LEAST_UNITS,
    Interval,
    QuantileWalk,
    half_width,
)
from loragate.server.experiments.non_inferiority import paired_means
from loragate.server.experiments.tally import ArmTally, Floats, Sample


def ratio_of_means(challenger: ArmTally, champion: ArmTally, metric: str, alpha: float) -> Interval:
    """The challenger's mean over the champion's, from pairs of units.

    A ratio r is refuted once the mean of (ours - r theirs) is shown not to be 0, by the asymptotic
    confidence sequence; solved for r, as E. C. Fieller did, "Some problems in interval estimation",
    JRSS B 16 (1954).
    """
    ours, theirs = paired_means(challenger, champion, metric)
    return _ratio(ours, theirs, alpha)


def _ratio(ours: Floats, theirs: Floats, alpha: float) -> Interval:
    units = len(ours)
    if not units or not theirs.any():
        return Interval(math.nan, 0.0, math.inf, units)
    a, b = float(ours.mean()), float(theirs.mean())
    if units < LEAST_UNITS:
        return Interval(a / b, 0.0, math.inf, units)
    reach2 = half_width(units, alpha) ** 2
    aa, ab, _, bb = map(float, np.cov(ours, theirs).flat)
    aa, ab, bb = aa * reach2, ab * reach2, bb * reach2
    # (a - r b)^2 <= aa - 2 r ab + r^2 bb, solved for r.
    square, linear, constant = b * b - bb, a * b - ab, a * a - aa
    if square <= 0:
        return Interval(a / b, 0.0, math.inf, units)
    root = math.sqrt(max(0.0, linear * linear - square * constant))
    return Interval(a / b, max(0.0, (linear - root) / square), (linear + root) / square, units)


def ratio_of_quantiles(
    challenger: Sample, champion: Sample, level: float, alpha: float
) -> Interval:
    """The challenger's quantile over the champion's; exact.

    Against "ours is q and theirs is p" the product of the arms' fortunes bets, fairly, since each
    value adds to one of them only. A ratio is refuted once every q and p that have it are. `units`
    are those of the smaller arm.
    """
    ours, theirs = QuantileWalk.of(challenger, level), QuantileWalk.of(champion, level)
    units = min(challenger.size, champion.size)
    if not units:
        return Interval(math.nan, 0.0, math.inf, 0)
    upper = _largest_ratio(ours, theirs, alpha)
    largest_inverse = _largest_ratio(theirs, ours, alpha)
    lower = 0.0 if math.isinf(largest_inverse) else 1 / largest_inverse
    return Interval(ours.estimate() / theirs.estimate(), lower, upper, units)


def _largest_ratio(over: QuantileWalk, under: QuantileWalk, alpha: float) -> float:
    """The largest over/under that is not refuted."""
    # Where the lower arm's quantile can begin, given what the other arm's fortune leaves to it: its
    # fortunes fall up to the observed quantile, so the first that is small enough is found by a
    # search in their reverse.
    least = int(np.argmin(under.fortunes))
    falling = under.fortunes[: least + 1]
    left = math.log(1 / alpha) - over.fortunes
    is_open = left > falling[-1]
    if not is_open.any():
        return 0.0
    steps = np.searchsorted(falling[::-1], left[is_open], side="left")
    begins = under.edges[least + 1 - steps]
    ends = over.edges[1:][is_open]
    with np.errstate(divide="ignore"):
        return float(np.max(ends / begins))
