"""Keeps exposures, outcomes and shadows off the request's path, and counts them as they come."""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from loragate.adapters.registry.trial_records import ExposureRow, OutcomeRow, ShadowRow
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.telemetry.batch_writer import BatchWriter

Row = ExposureRow | OutcomeRow | ShadowRow


class ObservationStore(Protocol):
    """Where they are kept: the registry. The call blocks. One row counts once, however often it is
    added.
    """

    def add(
        self,
        exposures: Sequence[ExposureRow],
        outcomes: Sequence[OutcomeRow],
        shadows: Sequence[ShadowRow],
    ) -> None: ...


class ObservationLog:
    """Exposures, outcomes and shadows, written twice a second.

    `async with log.writing(background)` owns the task.
    """

    def __init__(self, store: ObservationStore, pool: Executor | None = None) -> None:
        """The store is called in the threads of `pool`."""
        self._store = store
        self._writer = BatchWriter[Row]("observations", self._write, pool=pool)

    def add(self, row: Row) -> None:
        """Never waits."""
        self._writer.add(row)

    async def flush(self) -> None:
        """Feedback may come faster than a batch is written; what it refers to is written then.
        Raises what the store raises; then it stays pending.
        """
        await self._writer.flush()

    def writing(self, background: BackgroundTasks) -> AbstractAsyncContextManager[BatchWriter[Row]]:
        return self._writer.writing(background)

    def _write(self, rows: Sequence[Row]) -> None:
        self._store.add(
            [row for row in rows if isinstance(row, ExposureRow)],
            [row for row in rows if isinstance(row, OutcomeRow)],
            [row for row in rows if isinstance(row, ShadowRow)],
        )
