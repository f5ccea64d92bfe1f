"""Prometheus metrics of the background tasks, read when Prometheus asks."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loragate.server.concurrency.tasks import BackgroundTasks


class BackgroundTaskMetrics(Collector):
    def __init__(self, background: BackgroundTasks) -> None:
        self._background = background

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "loragate_background_task_up",
            "Whether a background task's last round went well.",
            labels=("task",),
        )
        restarts = CounterMetricFamily(
            "loragate_background_task_restarts",
            "Times that a background task failed and went on.",
            labels=("task",),
        )
        for task in self._background.all:
            up.add_metric((task.name,), float(task.is_up))
            restarts.add_metric((task.name,), task.restarts)
        return up, restarts
