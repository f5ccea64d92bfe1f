"""Limits that hold at every look, however often one looks and whenever one stops.

Each is made of a bet. Somebody starts with 1 and bets, value by value, against the claim "the mean
is m". If the claim is true the bets are fair, so the fortune is a nonnegative martingale, and it
ever reaches 1/alpha with probability alpha at most (Ville's inequality): no matter how many times
one looks. What makes the fortune reach 1/alpha is refuted; what is not refuted yet is the interval.

Sources:
- means of bounded values: I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables
  by betting", JRSS B 86 (2024), arXiv 2010.09686; the fortune here is a mixture over fixed bets.
- shares: the beta-binomial mixture, H. Robbins, "Statistical methods related to the law of the
  iterated logarithm", Ann. Math. Stat. 41 (1970). It holds for any values in [0, 1], such as a
  unit's share of failures, since (q/m)^x ((1-q)/(1-m))^(1-x) <= x q/m + (1-x)(1-q)/(1-m).
- quantiles: the same, on whether values are below: S. R. Howard, A. Ramdas, "Sequential estimation
  of quantiles", Bernoulli 28 (2022), arXiv 1906.09712.
- means of values without bounds: I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy, A. Ramdas,
  "Time-uniform central limit theory and asymptotic confidence sequences", Ann. Stat. 52 (2024),
  arXiv 2103.06476. These alone hold only in the limit, so nothing is said of fewer than
  `LEAST_UNITS`; `bench/simulate.py` measures what they are worth then.

`alpha` is always the probability of error of one end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import betaln, xlog1py, xlogy

from loragate.server.experiments.tally import Floats, Sample

LEAST_UNITS: Final = 50
"""Fewer units say nothing about a mean of values without bounds."""

# Fractions of the largest bet that cannot lose everything. The best one shrinks with the root of
# the number of values; from 20 to 20 000 of them it is within a factor of 1.2 of one of these.
_BETS: Final = 0.95 * 2.0 ** (-np.arange(14) / 2)
# How many values the prior of a share is worth: few, so that a share that is far off shows early.
_PRIOR_STRENGTH: Final = 20.0
# The sequence for unbounded means is narrowest at about so many units.
_TUNED_UNITS: Final = 500
_PRECISION: Final = 1e-6
_FINE: Final = 1e-9
_EDGE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its limits, from so many `units` (pairs of them, where arms are compared).

    An end may be infinite, or the least or largest possible value: nothing is known on that side.
    """

    estimate: float
    lower: float
    upper: float
    units: int


def bet_above(values: Floats, mean: float) -> Floats:
    """Log fortune after each of the values in [0, 1], of one who bets that their mean is above
    `mean`, which is in (0, 1).
    """
    return _mix(np.cumsum(_returns(values, mean), axis=0))


def bet_below(values: Floats, mean: float) -> Floats:
    """The same for one who bets that it is below."""
    return bet_above(1.0 - values, 1.0 - mean)


def _returns(values: Floats, mean: float) -> Floats:
    return np.log1p(_BETS * (values[:, None] / mean - 1.0))


def _mix(fortunes: Floats) -> Floats:
    return np.logaddexp.reduce(fortunes, axis=-1) - math.log(len(_BETS))


def mean_limits(values: Floats, alpha: float) -> tuple[float, float]:
    """Of the mean of independent values in [0, 1]."""
    return _lower_limit(values, alpha), 1.0 - _lower_limit(1.0 - values, alpha)


def _lower_limit(values: Floats, alpha: float) -> float:
    """The largest mean that betting above it refutes: a fortune falls as the mean bet on grows."""
    if not len(values) or values.max() <= 0:
        return 0.0
    # Values of people repeat themselves, so there are few different ones to go through each time.
    distinct, counts = np.unique(values, return_counts=True)

    def excess(mean: float) -> float:
        return float(_mix(counts @ _returns(distinct, mean))) - math.log(1 / alpha)

    highest = float(values.mean())
    if excess(_PRECISION) < 0 or highest <= _PRECISION:
        return 0.0
    if excess(highest) >= 0:
        return highest
    return _root(excess, _PRECISION, highest, _PRECISION)


def _root(function: Callable[[float], float], low: float, high: float, precision: float) -> float:
    found = root_scalar(function, bracket=(low, high), method="brentq", xtol=precision)
    return float(found.root)


@dataclass(frozen=True, slots=True)
class ShareBet:
    """Bets on how large a share of units is, expecting it near `expected`, which is in (0, 1)."""

    expected: float

    def fortune(self, inside: Floats | float, units: Floats | float, share: float) -> Floats:
        """Its logarithm, against the claim "the share is `share`", once `inside` of `units` were.
        Parts of units are allowed.
        """
        a, b = self._prior
        outside = units - inside
        odds = betaln(a + inside, b + outside) - betaln(a, b)
        return odds - xlogy(inside, share) - xlog1py(outside, -share)

    def limits(self, inside: float, units: float, alpha: float) -> tuple[float, float]:
        if units <= 0:
            return 0.0, 1.0
        observed = inside / units

        def excess(share: float) -> float:
            return float(self.fortune(inside, units, share)) - math.log(1 / alpha)

        # The fortune is convex in the share and least at the observed one, where it is below 0.
        lower, upper = 0.0, 1.0
        if observed > _EDGE and excess(_EDGE) > 0:
            lower = _root(excess, _EDGE, observed, _FINE)
        if observed < 1 - _EDGE and excess(1 - _EDGE) > 0:
            upper = _root(excess, observed, 1 - _EDGE, _FINE)
        return lower, upper

    @property
    def _prior(self) -> tuple[float, float]:
        return self.expected * _PRIOR_STRENGTH, (1 - self.expected) * _PRIOR_STRENGTH


@dataclass(frozen=True, slots=True)
class QuantileWalk:
    """A sample's values in order, and what betting says of each as the quantile `level`.

    Between the i-th and the next value, `inside[i]` of the units are below; `fortunes[i]` is the
    log fortune against "the quantile lies here". `edges` has one more entry than these: 0, the
    values, infinity.
    """

    edges: Floats
    inside: Floats
    fortunes: Floats
    level: float

    @classmethod
    def of(cls, sample: Sample, level: float) -> "QuantileWalk":
        order = np.argsort(sample.values, kind="stable")
        inside = np.concatenate([[0.0], np.cumsum(sample.weights()[order])])
        edges = np.concatenate([[0.0], sample.values[order], [math.inf]])
        fortunes = ShareBet(level).fortune(inside, float(sample.size), level)
        return cls(edges, inside, fortunes, level)

    def estimate(self) -> float:
        """The quantile of the sample; NaN of an empty one."""
        if len(self.edges) == 2:
            return math.nan
        at = np.searchsorted(self.inside, self.level * self.inside[-1] - 1e-9)
        return float(self.edges[max(1, int(at))])

    def limits(self, alpha: float) -> tuple[float, float]:
        [open_] = np.nonzero(self.fortunes < math.log(1 / alpha))
        return float(self.edges[open_[0]]), float(self.edges[open_[-1] + 1])


def half_width(units: int, alpha: float) -> float:
    """How far a mean may be from the true one, in standard deviations: of one end, for values
    without bounds. Raises ValueError below 1 unit.
    """
    if units < 1:
        raise ValueError("a mean needs a value")
    spent = -2 * math.log(2 * alpha)
    rho2 = (spent + math.log(spent + 1)) / _TUNED_UNITS
    grown = units * rho2 + 1
    return math.sqrt(2 * grown / (units**2 * rho2) * math.log1p(math.sqrt(grown) / (2 * alpha)))


def unbounded_mean(values: Floats, alpha: float) -> Interval:
    """Of the mean of independent values of finite variance."""
    units = len(values)
    estimate = float(values.mean()) if units else math.nan
    if units < LEAST_UNITS:
        return Interval(estimate, -math.inf, math.inf, units)
    reach = float(values.std(ddof=1)) * half_width(units, alpha)
    return Interval(estimate, estimate - reach, estimate + reach, units)
