"""Runs as records, made by hand."""

from typing import Any

import msgspec

from loadtests.records import ClientTick, End, Header, PhaseStart, Record, Run, Sample, gather

LIMITS = {
    "most_client_cpu_share": 0.85,
    "negligible_client_lag_ms": 10.0,
    "most_client_stall_ms": 500.0,
}


def header(**objectives: float) -> Header:
    return Header(
        scenario="steady",
        started_at="2026-01-01T00:00:00+00:00",
        rate=1.0,
        duration_seconds=10.0,
        seed=0,
        protocols=("http",),
        mix={},
        adapters=(),
        objectives=LIMITS | objectives,
        environment={},
        settings={},
    )


def answer(
    intended: float = 0.0,
    frames: tuple[float, ...] = (0.1, 0.2, 0.3),
    **changed: Any,
) -> Sample:
    """A whole answer with one token a frame, sent on time. Frames are reckoned from `intended`."""
    sample = Sample(
        index=0,
        phase="steady",
        protocol="http",
        tenant="acme",
        adapter="acme/support",
        label="",
        client="stays",
        intended=intended,
        sent=intended,
        ended=intended + frames[-1],
        outcome="ok",
        frames=[intended + at for at in frames],
        tokens=[1] * len(frames),
    )
    return msgspec.structs.replace(sample, **changed)


def run_of(*records: Record, lag: float = 0.001, cpu: float = 0.1, **objectives: float) -> Run:
    """A complete run of one phase of ten seconds, with a client that was idle unless said."""
    ticks = [ClientTick(float(second), [lag] * 50, cpu) for second in range(10)]
    phases = [each for each in records if isinstance(each, PhaseStart)]
    rest = [each for each in records if not isinstance(each, PhaseStart)]
    default = [PhaseStart("steady", 0.0, 10.0, 1.0)]
    return gather([header(**objectives), *(phases or default), *rest, *ticks, End(10.0)])
