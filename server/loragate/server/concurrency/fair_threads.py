"""Threads of their own for work that grows with what a client sends, in which tenants take turns.

Decoding, rendering and tokenizing megabytes takes seconds. On the event loop every other stream
would wait for it; in the threads that everything else uses, one tenant could fill them all.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from loragate.server.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], object]
    done: asyncio.Future[Any]


class FairThreads:
    """Belongs to one event loop. Of one tenant, one job runs at a time, and so many may wait.

    A job that runs cannot be stopped: one whose caller has gone holds its thread, and its tenant's
    turn, until it is over.
    """

    def __init__(self, threads: int = 2, most_waiting: int = 64) -> None:
        self._pool = ThreadPoolExecutor(threads, "requests")
        self._free = threads
        self._is_closed = False
        self._most_waiting = most_waiting
        self._running: set[str] = set()
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()  # who had a turn is last

    async def do(
        self, tenant: str, is_large: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Returns what `work` returns. What is not large is done at once, here.

        Raises what `work` raises, or Overloaded where too many of the tenant's jobs wait already.
        """
        if not is_large:
            return work(*args, **kwargs)
        waiting = self._waiting.setdefault(tenant, deque())
        if len(waiting) >= self._most_waiting:
            raise Overloaded(
                f"{len(waiting)} requests of this tenant wait to be read already; send the request "
                "again in a moment.",
                retry_after_seconds=1.0,
            )
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job = _Job(partial(work, *args, **kwargs), done)
        waiting.append(job)
        self._go_on()
        try:
            return await done
        finally:
            if job in waiting:  # its caller leaves while it waits
                waiting.remove(job)

    def close(self) -> None:
        """Takes nothing more, cancels what waits, and does not wait for what runs."""
        self._is_closed = True
        self._pool.shutdown(wait=False)
        for jobs in self._waiting.values():
            for job in jobs:
                job.done.cancel()

    def _go_on(self) -> None:
        """Begins what has a thread to run in, next whoever had no turn for longest."""
        for tenant in list(self._waiting):
            if not self._waiting[tenant]:
                del self._waiting[tenant]
        while self._free and not self._is_closed:
            tenant = next((each for each in self._waiting if each not in self._running), None)
            if tenant is None:
                return
            jobs = self._waiting[tenant]
            self._begin(tenant, jobs.popleft())
            if jobs:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]

    def _begin(self, tenant: str, job: _Job) -> None:
        self._free -= 1
        self._running.add(tenant)
        loop = asyncio.get_running_loop()

        def ended(work: Future[object]) -> None:
            with suppress(RuntimeError):  # the loop has ended before its threads
                loop.call_soon_threadsafe(self._end, tenant, job, work)

        self._pool.submit(job.work).add_done_callback(ended)

    def _end(self, tenant: str, job: _Job, work: Future[object]) -> None:
        self._free += 1
        self._running.discard(tenant)
        self._go_on()
        if job.done.done():  # its caller has left
            return
        if (error := work.exception()) is None:
            job.done.set_result(work.result())
        else:
            job.done.set_exception(error)
