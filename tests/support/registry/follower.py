"""What a server does to follow the registry: it looks again and again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from loragate.adapters.errors import StoreError
from loragate.adapters.registry.snapshot import SnapshotWatcher


@asynccontextmanager
async def following(
    watcher: SnapshotWatcher, every_seconds: float = 0.01
) -> AsyncIterator[SnapshotWatcher]:
    await watcher.refresh()
    task = asyncio.create_task(_look_for_ever(watcher, every_seconds))
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _look_for_ever(watcher: SnapshotWatcher, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        with suppress(StoreError):
            await watcher.refresh()
