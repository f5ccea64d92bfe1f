"""Gates: `error_rate<1%`, `ttft_p95<1.2x`, `rating>=champion-0.1`. What they say, and what an arm's
figures say to them.

    GATE   = METRIC [_p50 | _p90 | _p95 | _p99 | _mean] (< | <= | > | >=) BOUND
    BOUND  = 1% | 4.2 | 800ms | 1.5s         a number
           | 1.2x                            times the champion's
           | champion | champion-0.1 | champion+0.5%

A gate holds or fails only where that is certain enough, at any look; else it is open, and says what
is missing.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from loragate.server.errors import InvalidRequest
from loragate.server.experiments.confidence_sequences import (
    Interval,
    QuantileWalk,
    ShareBet,
    mean_limits,
    unbounded_mean,
)
from loragate.server.experiments.metrics import METRICS, Metric
from loragate.server.experiments.non_inferiority import block_size, pair
from loragate.server.experiments.plan_bounds import (
    LARGEST_BOUND,
    LONGEST_GATE,
    SMALLEST_BOUND,
)
from loragate.server.experiments.sample_sizes import for_any_limit, for_share, shrinking
from loragate.server.experiments.superiority import ratio_of_means, ratio_of_quantiles
from loragate.server.experiments.tally import ArmTally, Sample

Against = Literal["number", "difference", "ratio"]
_GATE = re.compile(r"([a-z_]+?)(?:_(p50|p90|p95|p99|mean))?\s*(<=|>=|<|>)\s*(\S.*)")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(%|ms|s|x)?")
_DIFFERENCE = re.compile(r"champion(?:([+-])(\d+(?:\.\d+)?)(%)?)?")
_EXAMPLES = "error_rate<1%, ttft_p95<1.2x or rating>=champion-0.1"


@dataclass(frozen=True, slots=True)
class Gate:
    """What is asked of a metric: its mean, or its quantile `level`, is to be below the bound where
    `is_upper`, else above it. The bound is a number, a difference from the champion's, or a
    multiple of it.
    """

    text: str
    metric: Metric
    level: float | None
    is_upper: bool
    against: Against
    bound: float

    def __str__(self) -> str:
        return self.text

    def is_met_by(self, value: float) -> bool:
        return value < self.bound if self.is_upper else value > self.bound

    def shown(self, value: float) -> str:
        """A value of what is compared with the bound, for people."""
        if not math.isfinite(value):
            return "unknown"
        if self.against == "ratio":
            return f"{value:.3g}x"
        sign = "+" if self.against == "difference" else ""
        match self.metric.kind:
            case "share":
                return f"{value * 100:{sign}.3g} %"
            case "time":
                return f"{value * 1000:{sign}.4g} ms"
            case _:
                return f"{value:{sign}.3g}"


def parse_gate(text: str) -> Gate:
    """Raises InvalidRequest, which says what is wrong and how it is written."""
    if len(text) > LONGEST_GATE:
        raise InvalidRequest(f"A gate has at most {LONGEST_GATE} characters.", param="gate")
    match = _GATE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"'{text}' is not a gate; write one as in {_EXAMPLES}.", param="gate")
    name, statistic, operator, bound = match.groups()
    metric = METRICS.get(name)
    if metric is None:
        raise InvalidRequest(
            f"'{text}': there is no metric '{name}'; use one of {', '.join(METRICS)}.", param="gate"
        )
    try:
        level = _level(metric, statistic)
        against, value = _bound(metric, bound)
        is_upper = operator in ("<", "<=")
        if is_upper == metric.higher_is_better:
            better = ">=" if is_upper else "<="
            raise ValueError(f"a good '{name}' is on the other side; write {name}{better}{bound}")
    except ValueError as error:
        raise InvalidRequest(f"'{text}': {error}.", param="gate") from None
    shown = f"{name}{'_' + statistic if statistic else ''}{operator}{bound.strip()}"
    return Gate(shown, metric, level, is_upper, against, value)


def _level(metric: Metric, statistic: str | None) -> float | None:
    if metric.is_bounded:
        if statistic not in (None, "mean"):
            raise ValueError(f"'{metric.name}' has a mean only; leave '_{statistic}' out")
        return None
    if statistic is None:
        raise ValueError(f"say of what: {metric.name}_p50, _p90, _p95, _p99 or _mean")
    return None if statistic == "mean" else int(statistic[1:]) / 100


def _bound(metric: Metric, text: str) -> tuple[Against, float]:
    if found := _DIFFERENCE.fullmatch(text):
        return "difference", _difference(metric, *found.groups())
    if found := _NUMBER.fullmatch(text):
        number, unit = float(found[1]), found[2] or ""
        if unit == "x":
            if metric.is_bounded:
                raise ValueError(f"compare '{metric.name}' by difference, as in champion+0.5%")
            return "ratio", _checked(number, 0.0, math.inf)
        return "number", _checked(number * _factor(metric, unit), metric.low, metric.high)
    raise ValueError(f"'{text}' is no bound; write a number, 1.2x or champion-0.1")


def _difference(metric: Metric, sign: str | None, number: str | None, percent: str | None) -> float:
    if not metric.is_bounded:
        raise ValueError(f"compare '{metric.name}' by ratio, as in 1.2x")
    if percent and metric.kind != "share":
        raise ValueError(f"'{metric.name}' is no share, so its margin has no %")
    span = metric.high - metric.low
    margin = float(number or 0) / (100 if percent else 1)
    return _checked(-margin if sign == "-" else margin, -span, span)


def _factor(metric: Metric, unit: str) -> float:
    units = {"share": {"%": 0.01, "": 1.0}, "time": {"ms": 1e-3, "s": 1.0}}
    allowed = units.get(metric.kind, {"": 1.0})
    if unit not in allowed:
        words = " or ".join(name or "a plain number" for name in allowed)
        raise ValueError(f"'{metric.name}' is given in {words}, or against the champion")
    return allowed[unit]


def _checked(bound: float, low: float, high: float) -> float:
    low, high = max(low, -LARGEST_BOUND), min(high, LARGEST_BOUND)
    if not low < bound < high:
        raise ValueError(f"the bound must lie between {low:g} and {high:g}")
    if 0 < abs(bound) < SMALLEST_BOUND:
        raise ValueError(f"the bound must be at least {SMALLEST_BOUND:g}")
    return bound


class GateState(StrEnum):
    """What is known of a gate."""

    HOLDS = "HOLDS"
    FAILS = "FAILS"
    OPEN = "OPEN"


@dataclass(frozen=True, slots=True)
class GateAnswer:
    """What is known of a gate. `interval` is of what is compared with the bound. Where it is open,
    `missing` says why in words, and `more_units` of the challenger may close it; None: it cannot be
    said.
    """

    gate: Gate
    state: GateState
    interval: Interval
    missing: str = ""
    more_units: int | None = None


def answer(
    gate: Gate,
    challenger: ArmTally,
    champion: ArmTally | None,
    hold_alpha: float,
    fail_alpha: float,
) -> GateAnswer:
    """Each alpha is the probability of saying so wrongly at any look. A gate against the champion
    holds where there is none any more.
    """
    if champion is None:
        if gate.against != "number":
            return GateAnswer(gate, GateState.HOLDS, Interval(math.nan, -math.inf, math.inf, 0))
        champion = challenger
    if absent := _absent(gate, challenger, champion):
        return GateAnswer(gate, GateState.OPEN, Interval(math.nan, -math.inf, math.inf, 0), absent)
    interval = measure(gate, challenger, champion, hold_alpha)
    if gate.is_met_by(interval.upper if gate.is_upper else interval.lower):
        return GateAnswer(gate, GateState.HOLDS, interval)
    strict = interval
    if fail_alpha != hold_alpha:
        strict = measure(gate, challenger, champion, fail_alpha)
    if not gate.is_met_by(strict.lower if gate.is_upper else strict.upper):
        return GateAnswer(gate, GateState.FAILS, strict)
    total = _units_needed(gate, interval, hold_alpha)
    more = None
    if total is not None:
        each = 1 if gate.against == "number" else block_size(challenger, champion)
        more = _rounded(max(1, total - interval.units) * each)
    return GateAnswer(gate, GateState.OPEN, interval, _missing(gate, interval, more), more)


def measure(gate: Gate, challenger: ArmTally, champion: ArmTally, alpha: float) -> Interval:
    """What is compared with the bound, each end with probability alpha wrong at any look."""
    name = gate.metric.name
    match gate.against, gate.level:
        case "difference", _:
            return pair(challenger, champion, gate.metric).interval(alpha)
        case "ratio", None:
            return ratio_of_means(challenger, champion, name, alpha)
        case "ratio", float(level):
            ours, theirs = challenger.sample(name), champion.sample(name)
            return ratio_of_quantiles(ours, theirs, level, alpha)
        case _:
            return _number(gate, challenger.sample(name), alpha)


def _number(gate: Gate, sample: Sample, alpha: float) -> Interval:
    if gate.level is not None:
        walk = QuantileWalk.of(sample, gate.level)
        return Interval(walk.estimate(), *walk.limits(alpha), sample.size)
    means, metric = sample.means(), gate.metric
    if not metric.is_bounded:
        return unbounded_mean(means, alpha)
    if metric.kind == "share":
        limits = ShareBet(gate.bound).limits(float(means.sum()), sample.size, alpha)
        return Interval(float(means.mean()), *limits, sample.size)
    span = metric.high - metric.low
    low, high = mean_limits((means - metric.low) / span, alpha)
    estimate = float(means.mean())
    return Interval(estimate, metric.low + low * span, metric.low + high * span, sample.size)


def _absent(gate: Gate, challenger: ArmTally, champion: ArmTally) -> str:
    what = f"feedback '{gate.metric.name}'" if gate.metric.is_feedback else gate.metric.name
    for arm in (challenger, champion):
        if not arm.sample(gate.metric.name).size:
            return f"{gate}: there is no {what} of {arm.name} yet"
    return ""


def _units_needed(gate: Gate, seen: Interval, alpha: float) -> int | None:
    """In all, if the arms are alike where that would do, else if what was seen is the truth."""
    if gate.against == "number" and gate.metric.kind == "share":
        is_met = gate.is_met_by(seen.estimate)
        return for_share(seen.estimate, gate.bound, alpha) if is_met else None
    limit = seen.upper if gate.is_upper else seen.lower
    if not math.isfinite(limit) or limit <= 0 < gate.bound:
        return max(2 * seen.units, for_any_limit(gate.level, gate.is_upper, alpha))
    alike = {"difference": 0.0, "ratio": 1.0}.get(gate.against, seen.estimate)
    for hoped in (alike, seen.estimate):
        total = shrinking(seen, *_distances(gate, seen.estimate, limit, hoped))
        if total is not None and total > seen.units:
            return total
    return None


def _distances(gate: Gate, estimate: float, limit: float, hoped: float) -> tuple[float, float]:
    """From the estimate to its limit, and from what is hoped for to the bound."""
    sign = 1 if gate.is_upper else -1
    if gate.against == "ratio":
        return sign * math.log(limit / estimate), sign * math.log(gate.bound / hoped)
    return sign * (limit - estimate), sign * (gate.bound - hoped)


def _missing(gate: Gate, seen: Interval, more: int | None) -> str:
    what = "units" if gate.against == "number" else "units beside the champion's"
    shown = (
        f"{gate}: {gate.shown(seen.estimate)} so far, between {gate.shown(seen.lower)} and "
        f"{gate.shown(seen.upper)} after {seen.units} {what}"
    )
    if more is None:
        return f"{shown}; what was seen does not meet it, so more units may not either"
    return f"{shown}; about {more} more units of the challenger are needed"


def _rounded(count: int) -> int:
    """To two digits: more would promise what an estimate cannot keep."""
    step = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / step) * step
