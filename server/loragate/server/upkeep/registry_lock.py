"""Keeps this server the only one of its registry, and tells when it is not."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial

from loragate.adapters.errors import ServedElsewhere
from loragate.adapters.registry.serving_lock import ServingLock
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks

logger = logging.getLogger(__name__)
_NAME = "registry lock"
_LOOK_SECONDS = 1.0
# Lost, it is to be had again before another server begins.
_AGAIN = Backoff(first=0.2, most=2.0)


class RegistryLock:
    """Looks after the lock, about once a second; `watched` owns the task that does.

    While it is not held the registry refuses what this server says of versions' states, and the
    server is not ready. Once another server has it, `taken` is set, and this one has to end.
    """

    def __init__(self, lock: ServingLock, executor: Executor | None = None) -> None:
        self.taken = asyncio.Event()
        self._lock = lock
        self._executor = executor
        self._taken_by = ""

    @property
    def degraded(self) -> tuple[str, ...]:
        """What `Health` is to name: at once, for requests must not go to two servers."""
        return () if self._lock.is_held else (_NAME,)

    def raise_if_taken(self) -> None:
        """Raises ServedElsewhere."""
        if self.taken.is_set():
            raise ServedElsewhere(self._taken_by)

    @asynccontextmanager
    async def watched(self, background: BackgroundTasks) -> AsyncIterator[None]:
        look = background.repeating(
            _NAME,
            self._look,
            wait=partial(asyncio.sleep, _LOOK_SECONDS),
            is_vital=True,
            is_prompt=True,
            backoff=_AGAIN,
        )
        async with look:
            yield

    async def _look(self) -> None:
        was_held = self._lock.is_held
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._lock.keep)
        except ServedElsewhere as error:
            if not self.taken.is_set():
                logger.error("this server has to end: %s", error)
            self._taken_by = error.reason
            self.taken.set()
        else:
            if not was_held:
                logger.warning("the registry's lock was lost, and is held again")
