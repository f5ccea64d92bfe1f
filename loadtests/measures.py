"""Figures out of samples. What each quantity means is said in `docs/load-tests.md`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loadtests.records import PhaseStart, Run, Sample

# By name, as in objectives.toml: `ttft_ms`, `tpot_ms` and `e2e_ms` are about each answer.
Objectives = Mapping[str, float]
_OF_ANSWERS: Mapping[str, Callable[[Sample], float | None]] = {
    "ttft_ms": lambda sample: sample.ttft_seconds,
    "tpot_ms": lambda sample: sample.tpot_seconds,
    "e2e_ms": lambda sample: sample.e2e_seconds,
}
_Z95 = 1.96


def missed(sample: Sample, objectives: Objectives) -> list[str]:
    """The objectives about single answers that this one missed."""
    return [
        name
        for name, measure in _OF_ANSWERS.items()
        if name in objectives and (measure(sample) or 0.0) * 1000 > objectives[name]
    ]


def is_good(sample: Sample, objectives: Objectives) -> bool:
    """Whether it counts as goodput: whole, and within all objectives."""
    return sample.outcome == "ok" and not missed(sample, objectives)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one quantity, in seconds; the intervals hold with 95 % and assume no distribution."""

    count: int
    p50: float
    p95: float
    p99: float
    largest: float
    p50_interval: tuple[float, float]
    p95_interval: tuple[float, float]


def percentiles(values: Iterable[float | None]) -> Percentiles | None:
    """None where there is nothing to measure."""
    found = np.sort(np.array([value for value in values if value is not None]))
    if not len(found):
        return None
    p50, p95, p99 = (float(np.percentile(found, at)) for at in (50, 95, 99))
    return Percentiles(
        count=len(found),
        p50=p50,
        p95=p95,
        p99=p99,
        largest=float(found[-1]),
        p50_interval=_interval(found, 0.5),
        p95_interval=_interval(found, 0.95),
    )


def _interval(ordered: np.ndarray, quantile: float) -> tuple[float, float]:
    """By order statistics: the ranks between which the quantile lies in 95 of 100 samples."""
    count = len(ordered)
    middle = count * quantile
    reach = _Z95 * math.sqrt(count * quantile * (1 - quantile))
    low = max(0, math.floor(middle - reach))
    high = min(count - 1, math.ceil(middle + reach))
    return float(ordered[low]), float(ordered[high])


def whole(samples: Iterable[Sample]) -> list[Sample]:
    """Those that were answered to the end."""
    return [sample for sample in samples if sample.outcome == "ok"]


def gaps(samples: Iterable[Sample]) -> list[float]:
    return [gap for sample in samples for gap in sample.gaps_seconds]


def asked(samples: Iterable[Sample]) -> list[Sample]:
    """Those whose clients wanted the answer: all but the ones that leave by plan."""
    return [sample for sample in samples if sample.client == "stays"]


def goodput(samples: Sequence[Sample], objectives: Objectives) -> float:
    """The share of good answers among all that were wanted; refusals count against it."""
    wanted = asked(samples)
    return sum(is_good(sample, objectives) for sample in wanted) / len(wanted) if wanted else 1.0


def tokens_per_second(samples: Iterable[Sample], starts: float, ends: float) -> float:
    """Tokens that arrived within a stretch of time, whenever they were asked for."""
    total = sum(
        tokens
        for sample in samples
        for at, tokens in zip(sample.frames, sample.tokens, strict=True)
        if starts <= at < ends
    )
    return total / (ends - starts)


@dataclass(frozen=True, slots=True)
class Step:
    """One phase of a run in figures."""

    phase: PhaseStart
    samples: list[Sample]
    offered_per_second: float
    answered_per_second: float
    tokens_per_second: float
    goodput: float
    ttft: Percentiles | None
    itl: Percentiles | None


def steps(run: Run) -> list[Step]:
    return [_step(run, phase) for phase in run.phases]


def _step(run: Run, phase: PhaseStart) -> Step:
    samples = [sample for sample in run.samples if sample.phase == phase.name]
    answered = whole(samples)
    until = phase.at + phase.seconds
    in_time = sum(phase.at <= sample.ended < until for sample in whole(run.samples))
    return Step(
        phase=phase,
        samples=samples,
        offered_per_second=len(samples) / phase.seconds,
        answered_per_second=in_time / phase.seconds,
        tokens_per_second=tokens_per_second(run.samples, phase.at, until),
        goodput=goodput(samples, run.header.objectives),
        ttft=percentiles(sample.ttft_seconds for sample in answered),
        itl=percentiles(gaps(answered)),
    )


def knee(found: Sequence[Step], least_goodput: float) -> Step | None:
    """The last step before the first that falls short. None where the first one does."""
    held = None
    for step in found:
        if step.goodput < least_goodput:
            return held
        held = step
    return held


@dataclass(frozen=True, slots=True)
class Stall:
    """The longest gap in streams while an alias moved, beside the longest at other times."""

    during_seconds: float
    otherwise_seconds: float


def swap_stall(run: Run) -> Stall | None:
    """None where nothing was swapped, or no stream ran while it was."""
    moves = [(swap.asked, swap.served) for swap in run.swaps if swap.served is not None]
    during, otherwise = [], []
    for sample in whole(run.samples):
        for early, late in pairwise(sample.frames):
            is_during = any(early < end and late > start for start, end in moves)
            (during if is_during else otherwise).append(late - early)
    if not during:
        return None
    return Stall(max(during), max(otherwise, default=0.0))


def stale(run: Run, grace_seconds: float) -> list[Sample]:
    """Answers of a version that had been replaced `grace_seconds` before they were asked for."""
    found: list[Sample] = []
    for sample in run.samples:
        moves = [
            swap
            for swap in run.swaps
            if swap.adapter == sample.adapter
            and swap.served is not None
            and swap.served + grace_seconds < sample.sent
        ]
        is_between = any(
            swap.adapter == sample.adapter and swap.asked < sample.sent and swap not in moves
            for swap in run.swaps
        )
        if moves and not is_between and sample.served_by:
            newest = max(moves, key=lambda swap: swap.asked)
            if sample.served_by != f"{newest.adapter}@{newest.version}":
                found.append(sample)
    return found


def slope_per_hour(times: Sequence[float], values: Sequence[float]) -> float:
    """Of a straight line through the points, by least squares."""
    if len(times) < 2:
        return 0.0
    return float(np.polyfit(np.array(times), np.array(values), 1)[0]) * 3600


def by_adapter(samples: Iterable[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Samples by tenant and adapter, in the order of their names."""
    found: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        found.setdefault((sample.tenant, sample.adapter), []).append(sample)
    return dict(sorted(found.items()))
