"""Is the challenger at most a margin worse? Bounded metrics of two arms, compared by difference.

"No difference was found" is not "there is none", so the question is asked the other way round: the
margin is declared beforehand, and the challenger is found not worse only once a loss of that much
is refuted.

Units are compared in pairs, in the order in which they counted: the i-th of one arm with the i-th
of the other, or with the mean of the next few where the other arm is larger. A pair's difference is
bounded and its mean is what is asked for, so betting (`confidence_sequences`) gives limits that are
exact for any number of pairs. And since both of a pair are of about the same time, what changes for
both arms alike in the course of a day does not look like a difference.
"""

from dataclasses import dataclass

import numpy as np

from loragate.server.experiments.confidence_sequences import (
    Interval,
    bet_above,
    bet_below,
    mean_limits,
)
from loragate.server.experiments.metrics import Metric
from loragate.server.experiments.tally import ArmTally, Floats

# More of the larger arm in a pair make its mean better known, but soon not by much.
_LARGEST_BLOCK = 20


@dataclass(frozen=True, slots=True)
class Pairs:
    """The challenger's minus the champion's, pair by pair, each in [-`span`, `span`]."""

    differences: Floats
    span: float

    def interval(self, alpha: float) -> Interval:
        lower, upper = mean_limits(self._scaled, alpha)
        size = len(self.differences)
        estimate = float(self.differences.mean()) if size else float("nan")
        return Interval(estimate, self._unscaled(lower), self._unscaled(upper), size)

    def evidence_above(self, difference: float) -> Floats:
        """Log fortune after each pair, of one who bets that the true difference is larger."""
        return bet_above(self._scaled, self._scale(difference))

    def evidence_below(self, difference: float) -> Floats:
        return bet_below(self._scaled, self._scale(difference))

    @property
    def _scaled(self) -> Floats:
        return (self.differences / self.span + 1) / 2

    def _scale(self, difference: float) -> float:
        return (difference / self.span + 1) / 2

    def _unscaled(self, scaled: float) -> float:
        return (2 * scaled - 1) * self.span


def pair(challenger: ArmTally, champion: ArmTally, metric: Metric) -> Pairs:
    """Raises ValueError for a metric without bounds."""
    if not metric.is_bounded:
        raise ValueError(f"'{metric.name}' has no bounds; compare it by ratio")
    ours, theirs = paired_means(challenger, champion, metric.name)
    return Pairs(ours - theirs, metric.high - metric.low)


def paired_means(challenger: ArmTally, champion: ArmTally, metric: str) -> tuple[Floats, Floats]:
    """Both sides of each pair; units that have no counterpart yet are left out."""
    ours, theirs = challenger.sample(metric).means(), champion.sample(metric).means()
    # By the declared shares: by the counts, pairs would be made anew at every look.
    ours = _means_of(ours, block_size(challenger, champion))
    theirs = _means_of(theirs, block_size(champion, challenger))
    size = min(len(ours), len(theirs))
    return ours[:size], theirs[:size]


def block_size(arm: ArmTally, other: ArmTally) -> int:
    """How many units of `arm` a pair has."""
    return int(np.clip(round(arm.share / other.share), 1, _LARGEST_BLOCK))


def _means_of(values: Floats, block: int) -> Floats:
    whole = len(values) // block * block
    return values[:whole].reshape(-1, block).mean(axis=1)
