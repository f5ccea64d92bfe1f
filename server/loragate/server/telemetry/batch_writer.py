"""Rows kept off the request's path: gathered in memory, written in batches by one task."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

from loragate.server.concurrency.pools import in_pool
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks

logger = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.5
_MOST_PENDING = 100_000
_MOST_AT_ONCE = 5_000  # in one transaction, which nobody else may write beside
_LONGEST_PAUSE_SECONDS = 5.0

Row = TypeVar("Row")


class BatchWriter(Generic[Row]):
    """Writes what was added twice a second, in the order in which it was added.

    `write` blocks, in a thread of the `pool`. Whatever it raises, its batch is written again with
    the next, so what it writes twice must count once: a connection that was lost does not say
    whether the batch was kept. A crash loses at most the rows of the last half second.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Row]], None],
        every_seconds: float = _FLUSH_SECONDS,
        pool: Executor | None = None,
    ) -> None:
        self._pool = pool
        self._name = name
        self._write_rows = write
        self._every_seconds = every_seconds
        self._pending: list[Row] = []  # what is being written, first, and what comes after it
        self._dropped = 0
        self._writing = asyncio.Lock()

    def add(self, row: Row) -> None:
        """Never waits; where the database has been away for too long, the row is dropped."""
        if len(self._pending) < _MOST_PENDING:
            self._pending.append(row)
        else:
            self._dropped += 1

    async def flush(self) -> None:
        """Returns once all that was added before is written. Raises what `write` raises; then the
        rest is still pending.
        """
        async with self._writing:
            for _ in range(0, len(self._pending), _MOST_AT_ONCE):
                await self._write(self._pending[:_MOST_AT_ONCE])

    @asynccontextmanager
    async def writing(self, background: BackgroundTasks) -> AsyncIterator["BatchWriter[Row]"]:
        """Owns the task that writes; leaving writes what is pending."""
        writing = background.repeating(
            self._name,
            self._round,
            wait=partial(asyncio.sleep, self._every_seconds),
            is_vital=True,
            is_prompt=True,
            # Its longest pause is short: what has waited is written before there is too much.
            backoff=Backoff(self._every_seconds, _LONGEST_PAUSE_SECONDS),
        )
        try:
            async with writing:
                yield self
        finally:
            await self._write_last()

    async def _round(self) -> None:
        if self._dropped:
            logger.error("%d %s dropped: too many were pending", self._dropped, self._name)
            self._dropped = 0
        await self.flush()

    async def _write_last(self) -> None:
        try:
            await self.flush()
        except Exception:
            logger.exception("%d %s are lost", len(self._pending), self._name)

    async def _write(self, rows: Sequence[Row]) -> None:
        writing = asyncio.create_task(in_pool(self._pool, self._write_rows, rows))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on all the same, and must not meet the next one that writes.
            await asyncio.wait([writing])
            if writing.exception() is None:
                del self._pending[: len(rows)]
            raise
        del self._pending[: len(rows)]
