"""Streams to clients that may not read: one that does not for so long is given up.

What it does not read fills its window, and the next piece waits: for as long as the request may
run, with its permit and its adapter's LoRA slot.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from loragate.server.errors import ClientTooSlow

Asked = TypeVar("Asked")
Piece = TypeVar("Piece")


@asynccontextmanager
async def writing(
    context: grpc.aio.ServicerContext[Asked, Piece], seconds: float
) -> AsyncIterator[Callable[[Piece], Awaitable[None]]]:
    """Yields what writes a piece. Raises ClientTooSlow where one has waited for `seconds`.

    One timer looks after the whole stream: a deadline for each piece would cost a tenth of the time
    that a token takes.
    """
    loop = asyncio.get_running_loop()
    timeout = asyncio.timeout(None)
    since: float | None = None  # when the piece that waits began to

    async def write(piece: Piece) -> None:
        nonlocal since
        since = loop.time()
        await context.write(piece)
        since = None

    def look() -> None:
        nonlocal timer
        if since is not None and loop.time() - since >= seconds:
            timeout.reschedule(loop.time())
        else:
            timer = loop.call_later(seconds / 4, look)

    timer = loop.call_later(seconds, look)
    try:
        async with timeout:
            yield write
    except TimeoutError:
        if not timeout.expired():
            raise
        raise ClientTooSlow(
            f"The answer was not read for {seconds:g} s; read faster, or raise "
            "server.write_timeout_seconds."
        ) from None
    finally:
        timer.cancel()
