import asyncio
import threading
from collections.abc import Sequence

import pytest

from loragate.adapters.errors import StoreError
from loragate.server.batches import BatchWriter


class Shelf:
    """Takes batches, or refuses so many of them first."""

    def __init__(self, refusals: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.is_filled = threading.Event()
        self._refusals = refusals

    def write(self, rows: Sequence[int]) -> None:
        if self._refusals:
            self._refusals -= 1
            raise StoreError("the disk is full; free space")
        self.batches.append(list(rows))
        self.is_filled.set()


async def test_flush_returns_once_what_was_added_is_written():
    shelf = Shelf()
    writer = BatchWriter("rows", shelf.write)
    for row in (1, 2, 3):
        writer.add(row)

    await asyncio.gather(writer.flush(), writer.flush())

    assert shelf.batches == [[1, 2, 3]]


async def test_batch_that_was_refused_is_written_first_next_time():
    shelf = Shelf(refusals=1)
    writer = BatchWriter("rows", shelf.write)
    writer.add(1)
    await writer.flush()
    writer.add(2)

    await writer.flush()

    assert shelf.batches == [[1, 2]]


async def test_leaving_writes_what_is_pending():
    shelf = Shelf()
    async with BatchWriter("rows", shelf.write).writing() as writer:
        writer.add(1)

    assert shelf.batches == [[1]]


async def test_rows_are_written_without_being_asked_for():
    shelf = Shelf()
    async with BatchWriter("rows", shelf.write).writing() as writer:
        writer.add(1)
        assert await asyncio.to_thread(shelf.is_filled.wait, 10)

    assert shelf.batches == [[1]]


async def test_error_of_the_programs_own_is_not_swallowed():
    def broken(rows: Sequence[int]) -> None:
        raise TypeError("not a row")

    writer = BatchWriter("rows", broken)
    writer.add(1)
    with pytest.raises(TypeError):
        await writer.flush()
