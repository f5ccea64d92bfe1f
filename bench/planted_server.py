"""`loragate serve` in which every background task fails now and then, for `bench.soak`."""

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from loragate.server.cli.main import main
from loragate.server.concurrency.tasks import BackgroundTask, BackgroundTasks

MEAN_SECONDS = 60.0  # from one failure of a task to its next
_repeating = BackgroundTasks.repeating


def _failing(
    tasks: BackgroundTasks, name: str, work: Callable[[], Awaitable[object]], **options: Any
) -> AbstractAsyncContextManager[BackgroundTask]:
    due = time.monotonic() + random.uniform(0.5, 1.5) * MEAN_SECONDS

    async def work_or_fail() -> None:
        nonlocal due
        if time.monotonic() > due:
            due = time.monotonic() + random.uniform(0.5, 1.5) * MEAN_SECONDS
            raise RuntimeError(f"planted in {name}")
        await work()

    return _repeating(tasks, name, work_or_fail, **options)


if __name__ == "__main__":
    BackgroundTasks.repeating = _failing  # type: ignore[method-assign]
    main()
