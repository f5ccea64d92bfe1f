"""Keeps exposures and outcomes off the request's path, and counts them as they come."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from loragate.adapters.trial_records import ExposureRow, OutcomeRow
from loragate.server.batches import BatchWriter


class Ledger(Protocol):
    """Where they are kept: the registry. The call blocks; it may raise StoreError."""

    def add_observations(
        self, exposures: Sequence[ExposureRow], outcomes: Sequence[OutcomeRow]
    ) -> None: ...


class ObservationLog:
    """Exposures and outcomes, written twice a second; `async with log.writing()` owns the task."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writer = BatchWriter[ExposureRow | OutcomeRow]("observations", self._write)

    def add(self, row: ExposureRow | OutcomeRow) -> None:
        """Never waits."""
        self._writer.add(row)

    async def flush(self) -> None:
        """Feedback may come faster than a batch is written; what it refers to is written then."""
        await self._writer.flush()

    def writing(self) -> AbstractAsyncContextManager[BatchWriter[ExposureRow | OutcomeRow]]:
        return self._writer.writing()

    def _write(self, rows: Sequence[ExposureRow | OutcomeRow]) -> None:
        self._ledger.add_observations(
            [row for row in rows if isinstance(row, ExposureRow)],
            [row for row in rows if isinstance(row, OutcomeRow)],
        )
