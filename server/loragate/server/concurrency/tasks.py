"""Work that goes on in the background for as long as the server runs, and never ends in silence.

A task is one round of work, done again and again. A round that raises is logged and done again
after a pause that doubles from failure to failure; only leaving `repeating` ends the task. How each
one is doing is known here, for `/metrics` and for readiness.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loragate.server.concurrency.retries import Backoff

logger = logging.getLogger(__name__)
Clock = Callable[[], float]
Round = Callable[[], Awaitable[object]]


@dataclass(slots=True, eq=False)
class BackgroundTask:
    """How one task is doing.

    `is_vital`: answers are wrong or records lost while it fails, so readiness depends on it.
    `is_prompt`: its rounds take seconds at most, so one that takes longer counts as failing.
    `restarts` counts the failures after each of which it went on.
    """

    name: str
    is_vital: bool = False
    is_prompt: bool = False
    restarts: int = 0
    _failing_since: float | None = None
    _working_since: float | None = None

    @property
    def is_up(self) -> bool:
        """Whether the last round that ended went well; true before the first has ended."""
        return self._failing_since is None

    def failing_seconds(self, now: float) -> float:
        """For how long no round has ended well that should have; 0 where all is well."""
        since = self._failing_since
        if since is None and self.is_prompt:
            since = self._working_since
        return 0.0 if since is None else now - since

    def begin(self, now: float) -> None:
        """A round of work begins."""
        self._working_since = now

    def end(self) -> None:
        """The round has ended well."""
        self._working_since = self._failing_since = None

    def fail(self, now: float) -> None:
        """The round has failed, and the task goes on."""
        self.restarts += 1
        if self._failing_since is None:
            self._failing_since = now if self._working_since is None else self._working_since
        self._working_since = None


class BackgroundTasks:
    """All background tasks of one server. Used from the event loop alone, but for `all`."""

    def __init__(
        self,
        degraded_after_seconds: float = 30.0,
        backoff: Backoff | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`backoff` is for tasks that bring none of their own."""
        self._degraded_after_seconds = degraded_after_seconds
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._tasks: tuple[BackgroundTask, ...] = ()  # replaced, never changed: read by threads

    @property
    def all(self) -> tuple[BackgroundTask, ...]:
        """Those that run, in the order in which they began. May be read from any thread."""
        return self._tasks

    @property
    def degraded(self) -> tuple[str, ...]:
        """The names of the vital tasks that have been failing for too long."""
        now, most = self._clock(), self._degraded_after_seconds
        return tuple(
            task.name for task in self._tasks if task.is_vital and task.failing_seconds(now) > most
        )

    @asynccontextmanager
    async def repeating(
        self,
        name: str,
        work: Round,
        *,
        wait: Round,
        is_vital: bool = False,
        is_prompt: bool = False,
        backoff: Backoff | None = None,
    ) -> AsyncIterator[BackgroundTask]:
        """Owns a task that waits and works, again and again; leaving cancels it and awaits its end.

        `wait` returns once there is something to do, and may take for ever. `work` is one round; it
        finds its own way after one that failed, since it is then called again without `wait`.
        `backoff` says the pauses before that. Raises ValueError where the name is taken.
        """
        if any(task.name == name for task in self._tasks):
            raise ValueError(f"there is a background task named {name!r} already")
        task = BackgroundTask(name, is_vital, is_prompt)
        self._tasks = (*self._tasks, task)
        repeat = self._repeat(task, work, wait, backoff or self._backoff)
        running = asyncio.create_task(repeat, name=name)
        try:
            yield task
        finally:
            running.cancel()
            await asyncio.wait({running})
            self._tasks = tuple(other for other in self._tasks if other is not task)

    async def _repeat(
        self, task: BackgroundTask, work: Round, wait: Round, backoff: Backoff
    ) -> None:
        delay: float | None = None
        began, last = self._clock(), ""
        while not _is_ending():
            try:
                if task.is_up:
                    await wait()
                task.begin(self._clock())
                await work()
                task.end()
                await asyncio.sleep(0)  # where nothing waits, others still get their turn
            except asyncio.CancelledError as error:
                if _is_ending():
                    raise
                failure: BaseException = error  # something that the work awaited was cancelled
            except Exception as error:  # noqa: BLE001 - the outermost edge of every background task
                failure = error
            else:
                continue
            if _is_ending():
                logger.error("%s failed as it ended", task.name, exc_info=failure)
                return
            now = self._clock()
            task.fail(now)
            delay = backoff.following(delay, now - began)
            last = _log(task, failure, delay, last)
            await asyncio.sleep(delay)
            began = self._clock()


def _is_ending() -> bool:
    """Whether the running task was told to end, even where its work has swallowed that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _log(task: BackgroundTask, failure: BaseException, delay: float, last: str) -> str:
    """Says what has failed, with its traceback unless the failure before was the same."""
    said = f"{type(failure).__name__}: {failure}"
    logger.error(
        "%s failed (%s), %d times in all; going on in %.1f s",
        task.name,
        said,
        task.restarts,
        delay,
        exc_info=failure if said != last else None,
    )
    return said
