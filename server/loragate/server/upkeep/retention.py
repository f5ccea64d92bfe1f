"""Deletes from the registry, once a day, what is kept no longer (`[retention]`)."""

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager

from loragate.adapters.registry.clock import WallClock, wall_clock
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.retention import PAUSE_SECONDS, Pruned, Retention
from loragate.server.concurrency.pools import in_pool
from loragate.server.concurrency.tasks import BackgroundTask, BackgroundTasks

logger = logging.getLogger(__name__)
_FIRST_SECONDS = 60.0  # after the start, when adapters are loaded and caches are filled
_EVERY_SECONDS = 24 * 3600.0


class RetentionTask:
    """Soon after the server's start and then daily; `running` owns the task.

    A round deletes a thousand rows at a time and rests between, so that usage and outcomes are
    written meanwhile. One that fails or is cut short by the server's end is gone on with later.
    """

    def __init__(
        self,
        registry: Registry,
        retention: Retention,
        pool: Executor | None = None,
        first_seconds: float = _FIRST_SECONDS,
        every_seconds: float = _EVERY_SECONDS,
        now: WallClock = wall_clock,
    ) -> None:
        """The registry is called in the threads of `pool`."""
        self._registry = registry
        self._retention = retention
        self._pool = pool
        self._next_seconds = first_seconds
        self._every_seconds = every_seconds
        self._now = now

    def running(self, background: BackgroundTasks) -> AbstractAsyncContextManager[BackgroundTask]:
        return background.repeating("retention", self._prune, wait=self._wait)

    async def _wait(self) -> None:
        await asyncio.sleep(self._next_seconds)

    async def _prune(self) -> None:
        steps, pruned = self._registry.retention.prune(self._retention, self._now()), Pruned()
        while (step := await in_pool(self._pool, next, steps, None)) is not None:
            pruned += step
            await asyncio.sleep(PAUSE_SECONDS)
        self._next_seconds = self._every_seconds
        if pruned.rows:
            logger.info("%d rows were deleted that are kept no longer: %s", pruned.rows, pruned)
