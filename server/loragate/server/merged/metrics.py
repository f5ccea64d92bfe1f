"""Prometheus metrics of the engines of merged models, read when Prometheus asks.

Their requests and times are among those of all requests, as `acme/support+merged`.
"""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loragate.server.merged.models import MergedModels


class MergedModelMetrics(Collector):
    def __init__(self, merged: MergedModels) -> None:
        self._merged = merged

    def collect(self) -> Iterable[Metric]:
        labels = ("tenant", "adapter")
        up = GaugeMetricFamily(
            "loragate_merged_engine_up", "Whether a merged model's engine answers.", labels=labels
        )
        starts = GaugeMetricFamily(
            "loragate_merged_engine_starts", "Times that it was started.", labels=labels
        )
        running = GaugeMetricFamily(
            "loragate_merged_requests_running", "Requests that it answers now.", labels=labels
        )
        promised = GaugeMetricFamily(
            "loragate_merged_engine_budget_bytes", "Memory that it may take.", labels=labels
        )
        for model in self._merged.models:
            names = (model.version.tenant, str(model.version))
            up.add_metric(names, float(model.engine.is_alive))
            starts.add_metric(names, model.engine.generation)
            running.add_metric(names, model.running)
            promised.add_metric(names, model.need.bytes)
        return up, starts, running, promised
