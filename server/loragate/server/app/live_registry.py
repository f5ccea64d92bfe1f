"""The registry as a running server has it: followed, written to in batches, its lock watched."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from loragate.adapters.registry.snapshot import Snapshot, SnapshotWatcher
from loragate.server.app.foundation import Foundation
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.telemetry.usage import UsageLog

# A database that answers again is to be read at once: what was revoked meanwhile still works.
_LOOK_AGAIN = Backoff(first=0.2, most=2.0)


@dataclass(frozen=True, slots=True)
class LiveRegistry:
    """The events are set with each new snapshot. There are three, since each is cleared by the one
    task that waits for it.
    """

    snapshots: SnapshotWatcher
    usage: UsageLog
    observations: ObservationLog
    aliases_changed: asyncio.Event
    trials_changed: asyncio.Event
    merged_changed: asyncio.Event

    @classmethod
    @asynccontextmanager
    async def running(cls, foundation: Foundation) -> AsyncIterator["LiveRegistry"]:
        """Owns the tasks. Raises StoreError where there is no first snapshot to be had."""
        registry, pools = foundation.registry, foundation.pools
        background = foundation.background
        usage = UsageLog(registry.usage, foundation.metrics.count, pools.records)
        observations = ObservationLog(registry.observations, pools.records)
        aliases, trials, merged = asyncio.Event(), asyncio.Event(), asyncio.Event()
        listeners = [_wake(event) for event in (aliases, trials, merged)]
        snapshots = SnapshotWatcher(registry, listeners, pools.snapshot)
        async with (
            # Left last, when nothing more is added: leaving writes what is pending.
            usage.writing(background),
            observations.writing(background),
            _following(snapshots, foundation.config.registry.poll_seconds, background),
            foundation.registry_lock.watched(background),
        ):
            yield cls(
                snapshots=snapshots,
                usage=usage,
                observations=observations,
                aliases_changed=aliases,
                trials_changed=trials,
                merged_changed=merged,
            )


@asynccontextmanager
async def _following(
    snapshots: SnapshotWatcher, poll_seconds: float, background: BackgroundTasks
) -> AsyncIterator[None]:
    """Keeps the snapshot up to date. Raises StoreError where there is no first one to be had."""
    await snapshots.refresh()
    look = background.repeating(
        "registry snapshot",
        snapshots.refresh,
        wait=partial(asyncio.sleep, poll_seconds),
        is_vital=True,  # a key that is revoked meanwhile goes on working
        is_prompt=True,
        backoff=_LOOK_AGAIN,
    )
    async with look:
        yield


def _wake(sleeper: asyncio.Event) -> Callable[[Snapshot], None]:
    return lambda snapshot: sleeper.set()
