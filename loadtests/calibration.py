"""Whether this client's clock can be trusted here and now: a server of known pace is measured."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.judging import judge
from loadtests.measures import gaps, whole
from loadtests.records import Run
from loadtests.target import BASE, Target, Tenant

_ROOT = Path(__file__).resolve().parents[1]
TTFT_SECONDS = 0.1
PACE_SECONDS = 0.02
_TOLERANCE = 0.05
# A connection, a request's way and its parsing are no error of the clock.
_REQUEST_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Measured:
    """One protocol's figures beside what they have to be, in seconds."""

    protocol: str
    gaps: int
    gap_mean: float
    gap_p50: float
    gap_p99: float
    ttft_p50: float


@dataclass(frozen=True, slots=True)
class Calibration:
    measured: list[Measured]
    refusals: list[str]


@contextmanager
def paced_target(pace_seconds: float = PACE_SECONDS) -> Iterator[Target]:
    """Runs the fixed-pace server in a process of its own."""
    command = [sys.executable, "-m", "loadtests.pace_server", str(TTFT_SECONDS), str(pace_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("The process was started without a pipe.")
            addresses = json.loads(process.stdout.readline())
            tenants = (Tenant("calibration", "none"),)
            yield Target(addresses["http"], addresses["grpc"], tenants, base=BASE)
        finally:
            process.terminate()


def check(run: Run) -> Calibration:
    """Compares what was measured with the pace, over each protocol of the run."""
    measured, refusals = [], list(judge(run).refusals)
    paced = [sample for sample in run.samples if sample.phase == run.phases[-1].name]
    for protocol in run.header.protocols:
        samples = whole(sample for sample in paced if sample.protocol == protocol)
        between = gaps(samples)
        if not between:
            refusals.append(f"Over {protocol}, not one stream of the fixed-pace server came whole.")
            continue
        firsts = [sample.ttft_seconds for sample in samples if sample.ttft_seconds is not None]
        found = Measured(
            protocol=protocol,
            gaps=len(between),
            gap_mean=float(np.mean(between)),
            gap_p50=float(np.median(between)),
            gap_p99=float(np.percentile(between, 99)),
            ttft_p50=float(np.median(firsts)),
        )
        measured.append(found)
        refusals += _wrong(found)
    return Calibration(measured, refusals)


def _wrong(found: Measured) -> list[str]:
    """The median tells a client that gathers tokens, the mean one that loses time."""
    claims = [
        ("the mean gap between tokens", found.gap_mean, PACE_SECONDS, 0.0),
        ("the median gap between tokens", found.gap_p50, PACE_SECONDS, 0.0),
        ("the median time to first token", found.ttft_p50, TTFT_SECONDS, _REQUEST_SECONDS),
    ]
    return [
        f"Over {found.protocol}, {what} of the fixed-pace server was measured as "
        f"{value * 1000:.2f} ms where it is {true * 1000:g} ms: off by more than {_TOLERANCE:.0%}. "
        "Leave this machine a free core, then try again."
        for what, value, true, extra in claims
        if not true * (1 - _TOLERANCE) <= value <= true * (1 + _TOLERANCE) + extra
    ]
