"""Gauges of how busy the server is, read when Prometheus asks."""

from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.server.admission.fair_queue import FairQueue
from loragate.server.engine.supervision import SupervisedEngine
from loragate.server.gateway.shadow import Shadows
from loragate.server.residency.residency import Residency
from loragate.server.telemetry.metrics import Metrics


def add_gauges(
    metrics: Metrics,
    *,
    snapshots: SnapshotWatcher,
    queue: FairQueue,
    residency: Residency,
    shadows: Shadows,
    engine: SupervisedEngine,
) -> None:
    metrics.gauge(
        "loragate_registry_snapshot_age_seconds",
        "Since what the server holds of the registry was known to be what it says.",
        lambda: snapshots.age_seconds,
    )
    metrics.gauge(
        "loragate_registry_unreadable_records",
        "Tenants, versions and aliases left out since their records cannot be read.",
        lambda: len(snapshots.current.unreadable()),
    )
    metrics.gauge(
        "loragate_requests_running",
        "Requests that the queue let go on and that are not over.",
        lambda: queue.in_flight,
    )
    metrics.gauge("loragate_sequences_running", "Choices that are computed.", lambda: queue.running)
    metrics.gauge("loragate_requests_queued", "Requests that wait.", lambda: queue.queued)
    metrics.gauge(
        "loragate_adapters_resident",
        "Adapter versions loaded in the engine.",
        lambda: len(residency.resident),
    )
    metrics.gauge(
        "loragate_lora_slots_in_use",
        "Adapter versions that requests hold now.",
        lambda: queue.slots_in_use,
    )
    metrics.gauge(
        "loragate_adapters_awaiting_slot",
        "Adapter versions whose requests wait for one of the engine's slots.",
        lambda: queue.awaiting_slot,
    )
    metrics.gauge(
        "loragate_shadows_made", "Answers compared with a second arm's.", lambda: shadows.made
    )
    metrics.gauge("loragate_shadows_dropped", "Second answers left out.", lambda: shadows.dropped)
    metrics.gauge(
        "loragate_engine_starts",
        "Times the engine was started; more than 1 where it has died.",
        lambda: engine.generation,
    )
