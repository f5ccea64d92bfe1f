"""A server's life from its first moment, in which there is no more than a port, to its end.

Imports little: what takes seconds to import, the server itself, is made by whoever calls.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING

from loragate.adapters.home import Home
from loragate.server.config import Config
from loragate.server.http.port import HttpPort, listen
from loragate.server.stopping import Stopping

if TYPE_CHECKING:
    from loragate.server.server import Server

logger = logging.getLogger(__name__)
_ENDING_SECONDS = 15.0  # after the drain: for what was cut off, and for engines to end
MakeServer = Callable[[], "AbstractAsyncContextManager[Server]"]


async def run(config: Config, home: Home, make: MakeServer) -> None:
    """Answers probes at once, starts the server that `make` makes, serves until asked to stop, and
    drains. Asked while it starts, it ends.

    Raises ConfigError where an address is taken and StoreError where another server has the home,
    both before anything is made, what `make` raises, and ServedElsewhere where another server took
    the registry over while this one served.
    """
    stopping = Stopping(config.server.drain_seconds + _ENDING_SECONDS)
    with home.serving_alone(), stopping.on_signals():
        # gRPC has nothing to say before there is a server, but is told now that its port is taken.
        listen("gRPC", "server.grpc", config.server.grpc).close()
        async with AsyncExitStack() as stack:
            try:
                with stopping.cancelling():
                    port = await stack.enter_async_context(HttpPort.opened(config.server))
                    server = await stack.enter_async_context(make())
                    await stack.enter_async_context(server.listening(port))
            except asyncio.CancelledError:
                if not stopping.requested.is_set():
                    raise
                return
            _leave_to_itself_what_is_loaded()
            await _either(stopping.requested, server.registry_lock.taken)
            await server.drain()
            server.registry_lock.raise_if_taken()


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _leave_to_itself_what_is_loaded() -> None:
    """Keeps the garbage collector from the 800,000 objects that importing vLLM makes.

    They stay as long as the process, and looking through them would hold every stream up for a
    third of a second, each time that requests have left enough behind.
    """
    gc.collect()
    gc.freeze()
