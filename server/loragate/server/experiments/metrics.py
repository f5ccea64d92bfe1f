"""What can be measured of an arm: by the gateway of each request, and by people's feedback."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from loragate.server.errors import InvalidRequest

MetricKind = Literal["share", "score", "time", "rate"]
COMMENT = "comment"


@dataclass(frozen=True, slots=True)
class Metric:
    """Values lie in [`low`, `high`]. Those of a time or a rate are positive and have no upper end:
    it decides which statistics can be used.
    """

    name: str
    kind: MetricKind
    low: float
    high: float
    is_feedback: bool = False
    higher_is_better: bool = False

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.high)


def _time(name: str) -> Metric:
    return Metric(name, "time", 0.0, math.inf)


def _score(name: str) -> Metric:
    return Metric(name, "score", 1.0, 5.0, is_feedback=True, higher_is_better=True)


METRICS = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("error_rate", "share", 0.0, 1.0),
            _time("ttft"),
            _time("itl"),
            _time("duration"),
            Metric("tokens_per_second", "rate", 0.0, math.inf, higher_is_better=True),
            Metric("thumbs", "share", 0.0, 1.0, is_feedback=True, higher_is_better=True),
            Metric("escalated", "share", 0.0, 1.0, is_feedback=True),
            _score("rating"),
            _score("accuracy"),
            _score("helpfulness"),
            _score("tone"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. `failed`: for a reason of the server's, such as a dead engine; not a
    bad request, a spent budget or a client that left. Times in seconds, None where there is none;
    `itl_seconds` is the request's mean.
    """

    failed: bool
    duration_seconds: float
    completion_tokens: int = 0
    ttft_seconds: float | None = None
    itl_seconds: float | None = None

    def observations(self) -> Iterator[tuple[str, float]]:
        """Metrics and values. A failed request has no speed: how fast it failed says nothing."""
        yield "error_rate", float(self.failed)
        if self.failed:
            return
        yield "duration", self.duration_seconds
        if self.ttft_seconds is not None:
            yield "ttft", self.ttft_seconds
        if self.itl_seconds is not None:
            yield "itl", self.itl_seconds
        if self.completion_tokens and self.duration_seconds > 0:
            yield "tokens_per_second", self.completion_tokens / self.duration_seconds


def check_feedback(metric: str, value: float | None, comment: str) -> None:
    """Whether it can be kept. Raises InvalidRequest, naming the field."""
    if metric == COMMENT:
        if value is not None or not comment:
            raise InvalidRequest("A comment has a text and no value.", param="comment")
        return
    known = METRICS.get(metric)
    if known is None or not known.is_feedback:
        names = ", ".join(name for name, found in METRICS.items() if found.is_feedback)
        raise InvalidRequest(
            f"There is no feedback '{metric}'; use one of {names}, {COMMENT}.", param="metric"
        )
    allowed = value in (0, 1) if known.kind == "share" else _is_within(value, known)
    if not allowed:
        how = "0 or 1" if known.kind == "share" else f"from {known.low:g} to {known.high:g}"
        raise InvalidRequest(f"'{metric}' is {how}, not {value}.", param="value")


def _is_within(value: float | None, metric: Metric) -> bool:
    return value is not None and metric.low <= value <= metric.high
