import asyncio
import threading
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from loragate.adapters.errors import StoreError
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.telemetry.batch_writer import BatchWriter


class Rows:
    """Takes batches, or refuses them first with these errors."""

    def __init__(self, *refusals: Exception) -> None:
        self.batches: list[list[int]] = []
        self.is_filled = threading.Event()
        self._refusals = list(refusals)

    def write(self, rows: Sequence[int]) -> None:
        if self._refusals:
            raise self._refusals.pop(0)
        self.batches.append(list(rows))
        self.is_filled.set()


async def test_flush_returns_once_what_was_added_is_written():
    rows = Rows()
    writer = BatchWriter("rows", rows.write)
    for row in (1, 2, 3):
        writer.add(row)

    await asyncio.gather(writer.flush(), writer.flush())

    assert rows.batches == [[1, 2, 3]]


async def test_batch_that_was_refused_is_written_first_next_time():
    rows = Rows(StoreError("the disk is full; free space"))
    writer = BatchWriter("rows", rows.write)
    writer.add(1)
    with pytest.raises(StoreError):
        await writer.flush()
    writer.add(2)

    await writer.flush()

    assert rows.batches == [[1, 2]]


async def test_leaving_writes_what_is_pending():
    rows = Rows()
    async with BatchWriter("rows", rows.write).writing(BackgroundTasks()) as writer:
        writer.add(1)

    assert rows.batches == [[1]]


async def test_rows_are_written_without_being_asked_for():
    rows = Rows()
    async with BatchWriter("rows", rows.write).writing(BackgroundTasks()) as writer:
        writer.add(1)
        assert await asyncio.to_thread(rows.is_filled.wait, 10)

    assert rows.batches == [[1]]


async def test_error_of_the_programs_own_is_not_swallowed():
    def broken(rows: Sequence[int]) -> None:
        raise TypeError("not a row")

    writer = BatchWriter("rows", broken)
    writer.add(1)
    with pytest.raises(TypeError):
        await writer.flush()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a mistake of ours"),
        ValueError("a naive datetime"),
        IntegrityError("INSERT", {}, Exception("duplicate key")),
        OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly")),
        PoolTimeout("QueuePool limit of size 5 overflow 10 reached"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_writer_goes_on_after_any_error_and_loses_no_row(error: Exception):
    rows, background = Rows(error), BackgroundTasks()
    async with BatchWriter("rows", rows.write, 0.01).writing(background) as writer:
        writer.add(1)
        assert await asyncio.to_thread(rows.is_filled.wait, 10)
        assert [task.restarts for task in background.all] == [1]

    assert rows.batches == [[1]]


async def test_what_cannot_be_written_at_the_end_is_told(caplog: pytest.LogCaptureFixture):
    error = RuntimeError("no disk")
    async with BatchWriter("rows", Rows(error).write).writing(BackgroundTasks()) as writer:
        writer.add(1)

    assert "1 rows are lost" in caplog.text


async def test_many_rows_are_written_in_transactions_of_bounded_size():
    rows = Rows()
    writer = BatchWriter("rows", rows.write)
    for row in range(12_000):
        writer.add(row)

    await writer.flush()

    assert max(map(len, rows.batches)) <= 5_000
    assert [row for batch in rows.batches for row in batch] == list(range(12_000))


async def test_rows_past_the_bound_are_dropped_and_counted_in_one_line(
    caplog: pytest.LogCaptureFixture,
):
    rows = Rows()
    async with BatchWriter("rows", rows.write).writing(BackgroundTasks()) as writer:
        for row in range(100_002):
            writer.add(row)
        assert await asyncio.to_thread(rows.is_filled.wait, 10)

    assert "2 rows dropped" in caplog.text
    assert sum(map(len, rows.batches)) == 100_000
