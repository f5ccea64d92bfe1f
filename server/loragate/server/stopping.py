"""Being asked to stop, by signals."""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
_OVERDUE = 1  # the exit status of a server that did not end in time


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
        overdue = threading.Timer(self._most_seconds, self._give_up)
        overdue.daemon = True
        overdue.start()
        if self._starting is not None:
            logger.info("stopping before the start is over")
            self._starting.cancel()

    def _give_up(self) -> None:
        logger.error("still not stopped after %.0f s; stopping at once", self._most_seconds)
        _end_now(_OVERDUE)


def _end_now(status: int) -> None:
    # Engines' processes end with this one by themselves, but a core in a long step would only
    # notice after it.
    for engine_process in multiprocessing.active_children():
        engine_process.kill()
    os._exit(status)
