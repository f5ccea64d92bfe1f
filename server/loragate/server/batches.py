"""Rows kept off the request's path: gathered in memory, written in batches by one task."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from loragate.adapters.errors import StoreError

logger = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.5
_MOST_PENDING = 100_000

Row = TypeVar("Row")


class BatchWriter(Generic[Row]):
    """Writes what was added twice a second, in the order in which it was added.

    `write` blocks and may raise StoreError, having written nothing; then the batch is tried again
    with the next. A crash loses at most the rows of the last half second.
    """

    def __init__(self, name: str, write: Callable[[Sequence[Row]], None]) -> None:
        self._name = name
        self._write_rows = write
        self._pending: list[Row] = []
        self._writing = asyncio.Lock()

    def add(self, row: Row) -> None:
        """Never waits; where the database has been away for too long, the row is dropped."""
        if len(self._pending) < _MOST_PENDING:
            self._pending.append(row)
        else:
            logger.error("%s dropped, too many pending", self._name)

    async def flush(self) -> None:
        """Returns once all that was added before is written, or could not be written now."""
        async with self._writing:
            await self._write()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator["BatchWriter[Row]"]:
        """Owns the task that writes; leaving writes what is pending."""
        task = asyncio.create_task(self._write_forever(), name=self._name)
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.flush()

    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()

    async def _write(self) -> None:
        rows = self._pending
        if not rows:
            return
        self._pending = []
        writing = asyncio.create_task(asyncio.to_thread(self._write_rows, rows))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on all the same; left alone, its batch could be lost unnoticed.
            await asyncio.wait([writing])
            if writing.exception() is not None:
                self._pending = [*rows, *self._pending]
            raise
        except StoreError:
            logger.exception("%s could not be written, trying again", self._name)
            self._pending = [*rows, *self._pending]
