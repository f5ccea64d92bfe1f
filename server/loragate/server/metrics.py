"""Prometheus metrics by tenant and adapter, with a bound on the number of label values.

Names follow OpenTelemetry's for generative AI where they have one, in Prometheus's spelling
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/). Times are in seconds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from loragate.adapters.names import AdapterVersion
from loragate.server.core import Route
from loragate.server.usage import Record

_OTHER = "other"
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BY_ADAPTER = ("tenant", "adapter")


class Metrics:
    """Owns its registry, so that two servers in one process do not share counters."""

    def __init__(self, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._adapters: set[tuple[str, str]] = set()
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "loragate_requests",
            "Requests that ended, by outcome: ok, cancelled, or an error code.",
            (*_BY_ADAPTER, "transport", "outcome"),
            registry=self.registry,
        )
        self._in = self._counter("loragate_prompt_tokens", "Tokens of prompts that were answered.")
        self._cached = self._counter(
            "loragate_cached_prompt_tokens", "Prompt tokens that came from the prefix cache."
        )
        self._out = self._counter("loragate_completion_tokens", "Tokens that were generated.")
        self._ttft = self._histogram(
            "loragate_time_to_first_token_seconds",
            "From the request's arrival to its first token, queue and adapter load included.",
            _LATENCY_BUCKETS,
        )
        self._itl = self._histogram(
            "loragate_inter_token_seconds", "Gaps between frames of one stream.", _TOKEN_BUCKETS
        )
        self._duration = self._histogram(
            "loragate_request_duration_seconds", "From arrival to the last token.", _LATENCY_BUCKETS
        )
        self._load = Histogram(
            "loragate_adapter_load_seconds",
            "Time to load an adapter version into the engine.",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "loragate_requests_in_flight",
            "Requests under way, by adapter.",
            _BY_ADAPTER,
            registry=self.registry,
        )

    @contextmanager
    def under_way(self, route: Route) -> Iterator[None]:
        """Counts one request as under way."""
        in_flight = self._in_flight.labels(*self._labels(route))
        in_flight.inc()
        try:
            yield
        finally:
            in_flight.dec()

    def count(self, record: Record) -> None:
        """Counts one request that has ended."""
        labels = self._labels(record.route)
        self._requests.labels(*labels, record.transport, record.outcome).inc()
        self._duration.labels(*labels).observe(record.duration_seconds)
        if record.ttft_seconds is None:
            return
        self._in.labels(*labels).inc(record.prompt_tokens)
        self._cached.labels(*labels).inc(record.cached_tokens)
        self._out.labels(*labels).inc(record.completion_tokens)
        self._ttft.labels(*labels).observe(record.ttft_seconds)
        itl = self._itl.labels(*labels)
        for gap in record.itl_seconds:
            itl.observe(gap)

    def adapter_loaded(self, version: AdapterVersion, seconds: float) -> None:
        self._load.observe(seconds)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when Prometheus asks."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _labels(self, route: Route) -> tuple[str, str]:
        labels = (route.tenant, route.answers)
        if labels not in self._adapters:
            if len(self._adapters) >= self._max_adapters:
                return (_OTHER, _OTHER)
            self._adapters.add(labels)
        return labels

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, _BY_ADAPTER, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, _BY_ADAPTER, buckets=buckets, registry=self.registry)
