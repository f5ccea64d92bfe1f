"""Whether a run can be believed, and whether it met its objectives."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.measures import (
    Objectives,
    asked,
    gaps,
    goodput,
    percentiles,
    slope_per_hour,
    stale,
    swap_stall,
    whole,
)
from loadtests.plans import FLOOD
from loadtests.records import Run, Sample

MET, MISSED, REFUSED = 0, 1, 3  # exit codes; 2 is a wrong command line
_STALE_GRACE_SECONDS = 1.0  # running servers follow the registry within it

# The client's clock is read when its loop wakes up, so a late loop makes times longer. One gap in a
# hundred may be wrong by a quarter; less than the limit in milliseconds never matters.
_MOST_LAG_SHARE = 0.25
_BUSY_SECONDS = 5


class ObjectivesError(ValueError):
    """A table of objectives that cannot be read, or names one that nobody knows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One objective, and what was found."""

    objective: str
    limit: float
    found: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """`refusals` are reasons why the figures may not be reported at all."""

    refusals: list[str]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        if self.refusals:
            return REFUSED
        return MET if all(finding.is_met for finding in self.findings) else MISSED


def judge(run: Run) -> Verdict:
    """Judges a run by the objectives that it was made with."""
    objectives = run.header.objectives
    findings = [
        Finding(name, limit, *_CHECKS[name](run, limit))
        for name, limit in objectives.items()
        if name in _CHECKS
    ]
    return Verdict(_refusals(run), findings)


def read_objectives(path: Path, scenario: str) -> dict[str, float]:
    """The scenario's objectives. Raises ObjectivesError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ObjectivesError(f"{path} cannot be read: {error}") from None
    found = {**tables.get("every", {}), **tables.get(scenario, {})}
    for name, limit in found.items():
        if name not in _CHECKS and name not in _USED_ELSEWHERE:
            known = ", ".join(sorted({*_CHECKS, *_USED_ELSEWHERE}))
            raise ObjectivesError(f"{path}: nobody knows the objective '{name}'; known: {known}.")
        if not isinstance(limit, int | float):
            raise ObjectivesError(f"{path}: '{name}' has to be a number.")
    if missing := _ABOUT_THE_CLIENT - found.keys():
        raise ObjectivesError(f"{path}: {', '.join(sorted(missing))} is missing in [every].")
    return found


def _refusals(run: Run) -> list[str]:
    """Why the figures would be the client's and not the server's."""
    reasons: list[str] = []
    if not run.is_complete:
        reasons.append("The run was broken off before its end.")
    if not run.samples:
        reasons.append("No request was made.")
    if not run.client:
        return [*reasons, "The client's own load was not measured: the run was too short."]
    busiest, most_busy = _busiest(run), run.header.objectives["most_client_cpu_share"]
    if busiest > most_busy:
        reasons.append(
            f"The client was the bottleneck: it used {busiest:.0%} of a core for "
            f"{_BUSY_SECONDS} s (at most {most_busy:.0%}). Ask at a lower rate, or from a "
            "faster machine."
        )
    stall, longest = max(_lags(run)), run.header.objectives["most_client_stall_ms"] / 1000
    if stall > longest:
        reasons.append(
            f"The client stood still for {stall * 1000:.0f} ms (at most {longest * 1000:.0f} ms), "
            "which looks like a stall of the server. Run again while nothing else runs here."
        )
    lag, limit = lag_p99(run), lag_limit(run)
    if lag > limit:
        reasons.append(
            f"The client was the bottleneck: one of a hundred of its wake-ups was late by "
            f"{lag * 1000:.1f} ms or more (at most {limit * 1000:.1f} ms). Leave it a core of its "
            "own, or ask at a lower rate."
        )
    return reasons


def lag_p99(run: Run) -> float:
    """How late the client's loop was, in one of a hundred wake-ups, in seconds."""
    return float(np.percentile(_lags(run), 99))


def lag_limit(run: Run) -> float:
    """How late it may be beside what it measured, in seconds."""
    between = percentiles(gaps(whole(run.samples)))
    negligible = run.header.objectives["negligible_client_lag_ms"] / 1000
    return max(negligible, _MOST_LAG_SHARE * between.p50 if between else 0.0)


def _lags(run: Run) -> list[float]:
    return [lag for tick in run.client for lag in tick.lags_seconds]


def _busiest(run: Run) -> float:
    shares = [tick.cpu_share for tick in run.client]
    width = min(_BUSY_SECONDS, len(shares))
    return max(float(np.mean(shares[at : at + width])) for at in range(len(shares) - width + 1))


_Found = tuple[str, bool]


def _least_goodput(run: Run, limit: float) -> _Found:
    share = goodput(run.samples, run.header.objectives)
    return f"{share:.3f}", share >= limit


def _least_goodput_of_others(run: Run, limit: float) -> _Found:
    others = [sample for sample in run.samples if sample.label != FLOOD]
    share = goodput(others, run.header.objectives)
    return f"{share:.3f}", share >= limit


def _most_failed(run: Run, limit: float) -> _Found:
    """Neither answered nor properly refused; where the server is stopped, unreachable is proper."""
    wrong = {"failed", "cut"} if run.stops else {"failed", "cut", "unreachable"}
    failed = [sample for sample in run.samples if sample.outcome in wrong]
    examples = sorted({f"{sample.outcome} {sample.status} {sample.code}" for sample in failed})
    text = f"{len(failed)} of {len(run.samples)}"
    return f"{text} ({'; '.join(examples[:3])})" if failed else text, len(failed) <= limit


def _most_recovery_ratio(run: Run, limit: float) -> _Found:
    """The median time to first token at the end of the last phase against the first phase."""
    first, last = run.phases[0], run.phases[-1]
    settled = last.at + last.seconds * 2 / 3
    before = _ttft_p50(run, lambda sample: sample.phase == first.name)
    after = _ttft_p50(run, lambda sample: sample.intended >= settled)
    return _ratio(before, after, limit)


def _most_flooded_ratio(run: Run, limit: float) -> _Found:
    """The others' median time to first token under the flood against the quiet before."""
    return _between_phases(run, limit, lambda sample: sample.label != FLOOD)


def _most_slowed_ratio(run: Run, limit: float) -> _Found:
    """The patient clients' median time to first token beside slow ones against the time before."""
    return _between_phases(run, limit, lambda sample: sample.client == "stays")


def _between_phases(run: Run, limit: float, counts: Callable[[Sample], bool]) -> _Found:
    first, second = run.phases[0].name, run.phases[1].name
    before = _ttft_p50(run, lambda sample: sample.phase == first and counts(sample))
    after = _ttft_p50(run, lambda sample: sample.phase == second and counts(sample))
    return _ratio(before, after, limit)


def _ratio(before: float | None, after: float | None, limit: float) -> _Found:
    if before is None or after is None:
        return "nothing to compare", False
    return (
        f"{after / before:.2f} ({before * 1000:.0f} ms, then {after * 1000:.0f} ms)",
        after <= before * limit,
    )


def _ttft_p50(run: Run, counts: Callable[[Sample], bool]) -> float | None:
    found = percentiles(
        sample.ttft_seconds for sample in whole(asked(run.samples)) if counts(sample)
    )
    return None if found is None else found.p50


def _least_cold_loads(run: Run, limit: float) -> _Found:
    """Loads that the server counted while requests were meant to be cold, against those."""
    phase = run.phases[0]
    ticks = [tick for tick in run.server if tick.at <= phase.at + phase.seconds]
    if len(ticks) < 2:
        return "/metrics could not be read", False
    first, last = ticks[0], ticks[-1]
    cold = sum(
        sample.label == "cold" and first.at <= sample.sent and sample.ended <= last.at
        for sample in run.samples
    )
    loads = last.adapter_loads - first.adapter_loads
    hint = "" if loads >= limit * cold else "; the server holds more adapters than were asked for"
    return f"{loads:.0f} loads for {cold} cold requests{hint}", loads >= limit * cold


def _most_stale(run: Run, limit: float) -> _Found:
    found = stale(run, _STALE_GRACE_SECONDS)
    return f"{len(found)} answers of a version already replaced", len(found) <= limit


def _least_swaps(run: Run, limit: float) -> _Found:
    done = [swap for swap in run.swaps if swap.served is not None]
    text = f"{len(done)} of {len(run.swaps)} asked for"
    return text, len(done) == len(run.swaps) and len(done) >= limit


def _most_swap_stall_ms(run: Run, limit: float) -> _Found:
    stall = swap_stall(run)
    if stall is None:
        return "no stream ran while an alias moved", False
    found = stall.during_seconds * 1000
    return f"{found:.0f} (otherwise {stall.otherwise_seconds * 1000:.0f})", found <= limit


def _most_seconds_to_idle(run: Run, limit: float) -> _Found:
    """From the end of the last request to the server's saying that nothing runs or waits."""
    over = max((sample.ended for sample in run.samples), default=0.0)
    idle = [tick.at for tick in run.server if tick.at >= over and not tick.running + tick.queued]
    if not idle:
        return "requests still ran in the server when the run ended", False
    return f"{max(0.0, idle[0] - over):.1f}", idle[0] - over <= limit


def _most_growth_mib(run: Run, limit: float) -> _Found:
    """The most memory in use in the last phase above the most before it."""
    sizes = [(tick.at, tick.rss_bytes) for tick in run.server if tick.rss_bytes is not None]
    starts = run.phases[-1].at
    before = [size for at, size in sizes if at < starts]
    after = [size for at, size in sizes if at >= starts]
    if not before or not after:
        return "unknown: the server is not this suite's own process", True
    growth = (max(after) - max(before)) / 2**20
    return f"{growth:.0f}", growth <= limit


def _most_growth_mib_per_hour(run: Run, limit: float) -> _Found:
    """The slope of memory in use, without the first tenth, in which caches fill."""
    settled = run.header.duration_seconds / 10
    points = [
        (tick.at, tick.rss_bytes / 2**20)
        for tick in run.server
        if tick.rss_bytes is not None and tick.at >= settled
    ]
    if not points:
        return "unknown: the server is not this suite's own process", True
    slope = slope_per_hour([at for at, _ in points], [size for _, size in points])
    return f"{slope:.1f}", slope <= limit


def _most_ttft_creep_ratio(run: Run, limit: float) -> _Found:
    """The median time to first token in the last quarter against the first."""
    quarter = run.header.duration_seconds / 4
    first = _ttft_p50(run, lambda sample: sample.intended < quarter)
    last = _ttft_p50(run, lambda sample: sample.intended >= 3 * quarter)
    return _ratio(first, last, limit)


def _most_lost_in_drain(run: Run, limit: float) -> _Found:
    """Requests sent before SIGTERM that did not end well."""
    if not run.stops:
        return "the server was not stopped", False
    at = run.stops[0].at
    lost = [sample for sample in run.samples if sample.sent < at and sample.outcome != "ok"]
    under_way = sum(sample.sent < at < sample.ended for sample in run.samples)
    return f"{len(lost)}, with {under_way} under way at SIGTERM", len(lost) <= limit


def _most_seconds_to_exit(run: Run, limit: float) -> _Found:
    """With /readyz at 503 and /livez at 200 in between, as far as they answer."""
    if not run.stops or (exited := run.stops[0].exited) is None:
        return "the server did not end", False
    stop = run.stops[0]
    took = exited - stop.at
    settled = [status for at, status in stop.ready if at > stop.at + 1]
    is_honest = 200 not in settled and all(status == 200 for _, status in stop.live)
    words = "" if is_honest else "; /readyz or /livez said otherwise"
    return f"{took:.1f}{words}", took <= limit and is_honest


_CHECKS: Mapping[str, Callable[[Run, float], _Found]] = {
    "least_goodput": _least_goodput,
    "least_goodput_of_others": _least_goodput_of_others,
    "most_failed": _most_failed,
    "most_recovery_ratio": _most_recovery_ratio,
    "most_flooded_ratio": _most_flooded_ratio,
    "most_slowed_ratio": _most_slowed_ratio,
    "least_cold_loads": _least_cold_loads,
    "most_stale": _most_stale,
    "least_swaps": _least_swaps,
    "most_swap_stall_ms": _most_swap_stall_ms,
    "most_seconds_to_idle": _most_seconds_to_idle,
    "most_growth_mib": _most_growth_mib,
    "most_growth_mib_per_hour": _most_growth_mib_per_hour,
    "most_ttft_creep_ratio": _most_ttft_creep_ratio,
    "most_lost_in_drain": _most_lost_in_drain,
    "most_seconds_to_exit": _most_seconds_to_exit,
}
_ABOUT_THE_CLIENT = frozenset(
    {"most_client_cpu_share", "negligible_client_lag_ms", "most_client_stall_ms"}
)
# About each answer, about the client, and for the report's reading of a sweep.
_USED_ELSEWHERE = frozenset({"ttft_ms", "tpot_ms", "e2e_ms", "knee_goodput"}) | _ABOUT_THE_CLIENT
KNEE_GOODPUT = 0.9


def knee_goodput(objectives: Objectives) -> float:
    return objectives.get("knee_goodput", KNEE_GOODPUT)
