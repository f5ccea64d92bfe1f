import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest

from loragate.server.gateway.streams import merge, prepend


@dataclass
class Source:
    """Numbers that come one by one as they are let through; knows whether it was closed."""

    items: Sequence[int] = ()
    error: Exception | None = None
    is_closed: bool = False
    given: int = 0
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            for item in self.items:
                await self.turn.acquire()
                self.given += 1
                yield item
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


def free(*items: int, error: Exception | None = None) -> Source:
    return Source(items, error, turn=asyncio.Semaphore(1000))


async def test_prepending_puts_one_item_before_the_rest() -> None:
    assert [item async for item in prepend(0, free(1, 2).stream())] == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_all_items_of_all_streams_come_each_stream_in_its_order(count: int) -> None:
    sources = [free(*range(10 * i, 10 * i + 8)) for i in range(count)]
    items = [item async for item in merge([source.stream() for source in sources])]
    assert sorted(items) == sorted(item for source in sources for item in source.items)
    for source in sources:
        assert [item for item in items if item in source.items] == list(source.items)
    assert all(source.is_closed for source in sources)


async def test_items_come_as_they_are_ready_whatever_their_stream() -> None:
    slow, quick = Source([1, 2]), Source([3, 4])
    merged = merge([slow.stream(), quick.stream()])
    for source, item in ((quick, 3), (slow, 1), (quick, 4), (slow, 2)):
        source.turn.release()
        assert await asyncio.wait_for(anext(merged), 1) == item
    with pytest.raises(StopAsyncIteration):
        await anext(merged)


async def test_the_first_failure_is_raised_as_it_is_and_closes_every_stream() -> None:
    waiting, failing = Source([1]), free(error=KeyError("broken"))
    with pytest.raises(KeyError, match="broken"):
        async for _ in merge([waiting.stream(), failing.stream()]):
            pass
    assert waiting.is_closed
    assert failing.is_closed


async def test_closing_early_closes_every_stream() -> None:
    one, other = free(1, 2, 3), Source([4])
    merged = merge([one.stream(), other.stream()])
    assert await anext(merged) == 1
    await merged.aclose()
    assert one.is_closed
    assert other.is_closed


async def test_a_cancelled_reader_closes_every_stream() -> None:
    sources = [Source([1]), Source([2])]

    async def read() -> None:
        async for _ in merge([source.stream() for source in sources]):
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert all(source.is_closed for source in sources)


async def test_a_reader_that_stands_still_holds_the_streams_back() -> None:
    sources = [free(*range(500)) for _ in range(2)]
    merged = merge([source.stream() for source in sources])
    await anext(merged)
    for _ in range(100):
        await asyncio.sleep(0)
    assert sum(source.given for source in sources) < 20
    await merged.aclose()
