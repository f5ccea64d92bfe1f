"""When each of several things that failed may be tried again, each by its own waits."""

import math
import time
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before a start: doubling from `first` to `most`, until a life was long."""

    first: float = 0.5
    most: float = 30.0
    reset_after: float = 60.0

    def following(self, delay: float | None, uptime: float) -> float:
        """The wait after one of `delay` seconds and a life of `uptime` seconds."""
        if delay is None or uptime >= self.reset_after:
            return self.first
        return min(delay * 2, self.most)


@dataclass(slots=True)
class _Wait:
    delay: float
    until: float  # by the clock


class Retries(Generic[Key]):
    """What is not in it may be tried at once. Times are in seconds."""

    def __init__(self, backoff: Backoff, clock: Callable[[], float] = time.monotonic) -> None:
        self._backoff = backoff
        self._clock = clock
        self._waits: dict[Key, _Wait] = {}

    def failed(self, key: Key) -> float:
        """Notes a failure; the wait until the next try, longer with each that follows another."""
        before = self._waits.get(key)
        delay = self._backoff.following(None if before is None else before.delay, 0.0)
        self._waits[key] = _Wait(delay, self._clock() + delay)
        return delay

    def begin(self, key: Key) -> None:
        """It is being tried: until that has ended nothing is due."""
        if (wait := self._waits.get(key)) is not None:
            wait.until = math.inf

    def postpone(self, key: Key, seconds: float) -> None:
        """Notes a failure that says itself when to come again, and that counts for nothing more."""
        before = self._waits.get(key)
        delay = self._backoff.first if before is None else before.delay
        self._waits[key] = _Wait(delay, self._clock() + seconds)

    def forget(self, key: Key) -> None:
        """It went well, or is wanted no longer."""
        self._waits.pop(key, None)

    def keep(self, keys: Container[Key]) -> None:
        """Forgets all but these."""
        self._waits = {key: wait for key, wait in self._waits.items() if key in keys}

    def is_due(self, key: Key) -> bool:
        return self.seconds_left(key) <= 0

    def seconds_left(self, key: Key) -> float:
        wait = self._waits.get(key)
        return 0.0 if wait is None else max(0.0, wait.until - self._clock())

    @property
    def next_seconds(self) -> float | None:
        """Until the next one of them is due; None where nothing waits."""
        seconds = min(map(self.seconds_left, self._waits), default=math.inf)
        return seconds if seconds < math.inf else None
