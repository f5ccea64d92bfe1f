"""What is counted for one label set, a tenant's adapter, and its lines of Prometheus's text.

The client library's own text of a thousand adapters is made anew at each scrape, line by line,
which takes from half a second to more than one. Here each label set keeps its lines until it
changes, and a histogram's are made by one formatting. Everything belongs to one event loop.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from loragate.server.telemetry.usage import Record

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Histogram:
    """A family of histograms; `start` is where a label set's buckets begin among its numbers. After
    a bucket for each bound come one for all that is larger, and the sum.
    """

    name: str
    help_text: str
    bounds: Sequence[float]
    start: int

    @property
    def end(self) -> int:
        """Where the sum is."""
        return self.start + len(self.bounds) + 1

    def observe(self, numbers: list[float], value: float) -> None:
        numbers[self.start + bisect_left(self.bounds, value)] += 1
        numbers[self.end] += value


# Among a label set's numbers, these three come first.
COUNTERS = (
    ("loragate_prompt_tokens_total", "Tokens of prompts that were answered."),
    ("loragate_cached_prompt_tokens_total", "Prompt tokens that came from the prefix cache."),
    ("loragate_completion_tokens_total", "Tokens that were generated."),
)
_PROMPT, _CACHED, _COMPLETION = range(3)
_TTFT = Histogram(
    "loragate_time_to_first_token_seconds",
    "From the request's arrival to its first token, queue and adapter load included.",
    _LATENCY_BUCKETS,
    len(COUNTERS),
)
_GAPS = Histogram(
    "loragate_inter_token_seconds",
    "Gaps between frames of one stream.",
    _TOKEN_BUCKETS,
    _TTFT.end + 1,
)
_DURATION = Histogram(
    "loragate_request_duration_seconds",
    "From arrival to the last token.",
    _LATENCY_BUCKETS,
    _GAPS.end + 1,
)
HISTOGRAMS = (_TTFT, _GAPS, _DURATION)
_REQUESTS = "loragate_requests_total"
_IN_FLIGHT = "loragate_requests_in_flight"
_SEPARATOR = "\x00"  # of families, in no name: names are checked when they are made


def _headers() -> Iterator[tuple[str, str, str]]:
    yield _REQUESTS, "counter", "Requests that ended, by outcome: ok, cancelled, or an error code."
    for name, help_text in COUNTERS:
        yield name, "counter", help_text
    for histogram in HISTOGRAMS:
        yield histogram.name, "histogram", histogram.help_text
    yield _IN_FLIGHT, "gauge", "Requests under way, by adapter."


FAMILIES = tuple(
    f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n" for name, kind, help_text in _headers()
)
"""The first lines of each family that has a line or more for each label set."""


@dataclass(slots=True)
class Figures:
    """What only grows: requests by transport and outcome, and the counters' and histograms' numbers
    in one list.
    """

    requests: dict[tuple[str, str], int] = field(default_factory=dict)
    numbers: list[float] = field(default_factory=lambda: [0] * (_DURATION.end + 1))

    def count(self, record: Record) -> None:
        """Counts a request that has ended."""
        numbers, ended = self.numbers, (record.transport, record.outcome)
        self.requests[ended] = self.requests.get(ended, 0) + 1
        _DURATION.observe(numbers, record.duration_seconds)
        if record.ttft_seconds is None:
            return
        numbers[_PROMPT] += record.prompt_tokens
        numbers[_CACHED] += record.cached_tokens
        numbers[_COMPLETION] += record.completion_tokens
        _TTFT.observe(numbers, record.ttft_seconds)
        for gap in record.itl_seconds:
            _GAPS.observe(numbers, gap)

    def copy(self) -> "Figures":
        return Figures(dict(self.requests), list(self.numbers))

    def add_growth(self, before: "Figures", after: "Figures") -> None:
        """Adds what another label set has counted between two moments."""
        for ended, requests in after.requests.items():
            if grown := requests - before.requests.get(ended, 0):
                self.requests[ended] = self.requests.get(ended, 0) + grown
        for i, (old, new) in enumerate(zip(before.numbers, after.numbers, strict=True)):
            self.numbers[i] += new - old


class AdapterMetrics:
    """One label set. `lines` are its text for each of the `FAMILIES`, as of the last `render`."""

    def __init__(self, tenant: str, adapter: str) -> None:
        self.tenant = tenant
        self.adapter = adapter
        self.figures = Figures()
        self.rendered = Figures()
        """The figures that `lines` show."""
        self.in_flight = 0
        self.lines: tuple[str, ...] = ("",) * len(FAMILIES)
        by = f'adapter="{_escaped(adapter)}"', f'tenant="{_escaped(tenant)}"'
        self._by = by
        self._request_names: dict[tuple[str, str], str] = {}
        self._template = _SEPARATOR.join(_templates(*by))

    def render(self) -> None:
        """Makes the lines anew; about ten microseconds."""
        numbers = self.figures.numbers
        values = numbers[: len(COUNTERS)]
        for histogram in HISTOGRAMS:
            values += accumulate(numbers[histogram.start : histogram.end])
            values += values[-1], numbers[histogram.end]
        values.append(self.in_flight)
        # One formatting for all families, which are apart in the text.
        self.lines = (self._requests(), *(self._template % tuple(values)).split(_SEPARATOR))
        self.rendered = self.figures.copy()

    def _requests(self) -> str:
        names = self._request_names
        return "".join(
            [
                f"{names.get(ended) or self._named(ended)} {requests}.0\n"
                for ended, requests in self.figures.requests.items()
            ]
        )

    def _named(self, ended: tuple[str, str]) -> str:
        (adapter, tenant), (transport, outcome) = self._by, map(_escaped, ended)
        name = f'{_REQUESTS}{{{adapter},outcome="{outcome}",{tenant},transport="{transport}"}}'
        self._request_names[ended] = name
        return name


def _templates(adapter: str, tenant: str) -> Iterator[str]:
    """Of the families but the first, in their order."""
    adapter, tenant = adapter.replace("%", "%%"), tenant.replace("%", "%%")
    labels = f"{{{adapter},{tenant}}}"
    for name, _ in COUNTERS:
        yield f"{name}{labels} %d.0\n"
    for histogram in HISTOGRAMS:
        yield _template(histogram, adapter, tenant)
    yield f"{_IN_FLIGHT}{labels} %d.0\n"


def _template(histogram: Histogram, adapter: str, tenant: str) -> str:
    """For the cumulative counts, the last one again, and the sum."""
    name = histogram.name
    ends = *map(repr, histogram.bounds), "+Inf"
    buckets = "".join(f'{name}_bucket{{{adapter},le="{end}",{tenant}}} %d.0\n' for end in ends)
    labels = f"{{{adapter},{tenant}}}"
    return f"{buckets}{name}_count{labels} %d.0\n{name}_sum{labels} %r\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
