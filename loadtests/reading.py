"""What the two clients have in common: an answer as it came, and what to make of it.

While a stream runs, only its arrivals are noted; they are parsed after its end, so that parsing one
answer does not delay the clock of another.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtests.plans import Ask
from loadtests.records import Outcome, Sample

SLOW_READ_SECONDS = 0.5  # between two reads of a client that lingers


@dataclass(slots=True)
class Arrived:
    """One answer, unparsed. Times are of `time.perf_counter`."""

    sent: float
    status: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    has_left: bool = False
    is_unreachable: bool = False
    error: str = ""

    def note(self, piece: bytes) -> None:
        self.pieces.append((time.perf_counter(), piece))


@dataclass(slots=True)
class Frames:
    """The arrivals of tokens in an answer."""

    at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    is_whole: bool = False
    error_code: str = ""

    def add(self, at: float, tokens: int) -> None:
        self.at.append(at)
        self.tokens.append(tokens)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How an answer that is none says so: its code, and when to come back."""

    code: str
    retry_after_seconds: float | None
    is_proper: bool


def as_sample(
    ask: Ask, origin: float, arrived: Arrived, frames: Frames, refusal: Refusal | None
) -> Sample:
    """Puts together what is written down. `origin` is the run's start on the same clock."""
    sent = arrived.sent - origin
    return Sample(
        index=ask.index,
        phase=ask.phase,
        protocol=ask.protocol,
        tenant=ask.tenant,
        adapter=ask.adapter,
        label=ask.label,
        client=ask.client,
        intended=_rounded(sent if ask.at is None else ask.at),
        sent=_rounded(sent),
        ended=_rounded(arrived.ended - origin),
        outcome=_outcome(arrived, frames, refusal),
        status=arrived.status or arrived.error,
        code=frames.error_code or (refusal.code if refusal else ""),
        served_by=arrived.headers.get("x-loragate-adapter", ""),
        prompt_tokens=frames.prompt_tokens,
        retry_after_seconds=refusal.retry_after_seconds if refusal else None,
        frames=[_rounded(at - origin) for at in frames.at],
        tokens=frames.tokens,
    )


def _outcome(arrived: Arrived, frames: Frames, refusal: Refusal | None) -> Outcome:
    if arrived.has_left:
        return "left"
    if arrived.is_unreachable:
        return "unreachable"
    if refusal is not None:
        return "refused" if refusal.is_proper else "failed"
    return "ok" if frames.is_whole and frames.at and not frames.error_code else "failed"


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
