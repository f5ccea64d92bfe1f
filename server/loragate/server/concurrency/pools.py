"""Threads by purpose, for calls that block.

A registry's database that does not answer holds each thread that asks it for some seconds. Were
they all of one pool, usage records could not be written while an administrator lists adapters, and
a publish of two gigabytes would stand in a revocation's way.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_DEFAULT_THREADS = 32


class Pools:
    """Made by `with Pools() as pools`; leaving waits for no thread that still runs.

    `snapshot` looks at the registry, `lock` at its lock; `records` writes usage, what trials saw
    and feedback; `administration` is for operators' calls; `files` for adapters that are published,
    which takes as long as they are large; `trials` for rollouts and experiments. All else, such as
    loading, has the event loop's own threads.
    """

    def __init__(self) -> None:
        self.snapshot = ThreadPoolExecutor(1, "snapshot")
        self.lock = ThreadPoolExecutor(1, "registry-lock")
        self.records = ThreadPoolExecutor(3, "records")
        self.administration = ThreadPoolExecutor(4, "administration")
        self.files = ThreadPoolExecutor(2, "files")
        self.trials = ThreadPoolExecutor(2, "trials")

    def __enter__(self) -> Self:
        # By itself it has six threads on two cores.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_DEFAULT_THREADS, "server"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in (
            self.snapshot,
            self.lock,
            self.records,
            self.administration,
            self.files,
            self.trials,
        ):
            pool.shutdown(wait=False)


async def in_pool(
    pool: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What the function returns or raises, run by the pool; by the event loop's own if None."""
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(pool, call)
