"""A server's life from its first moment, in which there is no more than a port, to its end.

Imports little: what takes seconds to import, the server itself, is made by whoever calls.
"""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from loragate.adapters.home import Home
from loragate.server.config import Config
from loragate.server.http.port import HttpPort, listen

if TYPE_CHECKING:
    from loragate.server.app.server import Server

logger = logging.getLogger(__name__)
_ENDING_SECONDS = 15.0  # after the drain: for what was cut off, and for engines to end
_OVERDUE = 1  # the exit status of a server that did not end in time
MakeServer = Callable[[], "AbstractAsyncContextManager[Server]"]


class Stopping:
    """SIGTERM and SIGINT: the first asks to finish, a second one ends the process at once, and so
    does `most_seconds` after the first, whatever the server is doing then.
    """

    def __init__(self, most_seconds: float) -> None:
        self.requested = asyncio.Event()
        self._most_seconds = most_seconds
        self._starting: asyncio.Task[object] | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    @contextmanager
    def cancelling(self) -> Iterator[None]:
        """While the calling task is in it, a request to stop cancels the task: there is nothing yet
        that would have to be finished.
        """
        self._starting = asyncio.current_task()
        try:
            yield
        finally:
            self._starting = None

    def _stop(self, number: int) -> None:
        if self.requested.is_set():
            logger.warning("stopping at once")
            _end_now(128 + number)
        self.requested.set()
        # A thread, since what keeps the server from ending may be the event loop itself.
        overdue = threading.Timer(self._most_seconds, self._end_overdue)
        overdue.daemon = True
        overdue.start()
        if self._starting is not None:
            logger.info("stopping before the start is over")
            self._starting.cancel()

    def _end_overdue(self) -> None:
        logger.error("still not stopped after %.0f s; stopping at once", self._most_seconds)
        _end_now(_OVERDUE)


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


def _end_now(status: int) -> None:
    # Engines' processes end with this one by themselves, but a core in a long step would only
    # notice after it.
    for engine_process in multiprocessing.active_children():
        engine_process.kill()
    os._exit(status)
