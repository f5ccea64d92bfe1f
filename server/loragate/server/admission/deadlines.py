"""How long a request may run: so many seconds, and no longer than the server does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loragate.server.errors import DeadlineExceeded, Draining


class Deadlines:
    """Holds the deadlines of all requests under way; belongs to one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._under_way: set[asyncio.Timeout] = set()
        self._are_cut_off = False

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Ends what is in it when its time is up. Raises DeadlineExceeded, or Draining where it was
        cut off; a TimeoutError of what is in it passes through, since it is not of this deadline.
        """
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                self._under_way.add(timeout)
                try:
                    yield
                finally:
                    self._under_way.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            if self._are_cut_off:
                raise Draining(
                    "The server has stopped before the answer's end; send the request again in a "
                    "moment.",
                    retry_after_seconds=1.0,
                ) from None
            raise DeadlineExceeded(f"The request took longer than {self._seconds:g} s.") from None

    def cut_off(self) -> None:
        """Ends all requests under way, each at its next step."""
        self._are_cut_off = True
        now = asyncio.get_running_loop().time()
        for timeout in self._under_way:
            if not timeout.expired():
                timeout.reschedule(now)
