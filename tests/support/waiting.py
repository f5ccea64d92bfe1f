"""Waiting until something holds, with a deadline that only a failure reaches."""

import asyncio
import threading
import time
from collections.abc import Callable


def wait_for(claim: Callable[[], bool], seconds: float) -> bool:
    """Asks again until the claim holds or the time is up."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


async def until(claim: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until the claim holds; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not claim():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)
