"""Being asked to stop, by signals."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Stopping:
    """SIGTERM and SIGINT: the first asks to finish, a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()

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

    def _stop(self, number: int) -> None:
        if self.requested.is_set():
            logger.warning("stopping at once")
            for engine_process in multiprocessing.active_children():
                engine_process.kill()
            os._exit(128 + number)
        self.requested.set()
