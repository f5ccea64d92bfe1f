"""Small joints between streams of deltas."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


async def prepend(first: Item, rest: AsyncIterator[Item]) -> AsyncIterator[Item]:
    """Yields `first`, then what is left."""
    yield first
    async for item in rest:
        yield item


def merge(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Yields items of all streams as they come. The first failure ends and closes them all."""
    return streams[0] if len(streams) == 1 else _interleave(streams)


async def _interleave(
    streams: Sequence[AsyncGenerator[Item, None]],
) -> AsyncGenerator[Item, None]:
    # Bounded, so that a slow reader holds the streams back instead of filling the memory.
    # Not a TaskGroup: it would wrap a failure, and this generator's own closing, into a group.
    arrivals: asyncio.Queue[Item | _End] = asyncio.Queue(maxsize=2 * len(streams))

    async def pump(stream: AsyncGenerator[Item, None]) -> None:
        end = _End()
        try:
            async with aclosing(stream):
                async for item in stream:
                    await arrivals.put(item)
        except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
            end = _End(error)
        await arrivals.put(end)

    pumps = [asyncio.create_task(pump(stream), name="merge") for stream in streams]
    try:
        running = len(pumps)
        while running:
            arrival = await arrivals.get()
            if not isinstance(arrival, _End):
                yield arrival
            elif arrival.error is not None:
                raise arrival.error
            else:
                running -= 1
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _End:
    """One stream is over; `error` is what ended it, if anything did."""

    error: Exception | None = None
