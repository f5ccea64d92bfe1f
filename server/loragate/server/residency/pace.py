"""How to work beside an engine that wants every core: in pieces of some milliseconds, apart.

An engine on a few cores goes no faster than its slowest core, so a step gets longer by all that
anything else computes in it, and by up to as much again. Two pieces should not hit the same one.
Smaller pieces with shorter pauses were worse: each time that another thread wakes, some of the
hundreds of meetings of the engine's threads in a step take a slice longer. Threads of low priority
were no better, for the same reason.
"""

import asyncio
from collections.abc import Callable

_STEP_SECONDS = 0.06  # of an engine on two cores; one on a GPU takes less


async def let_steps_pass(is_busy: Callable[[], bool]) -> None:
    """Between two pieces; at once where nobody would notice."""
    if is_busy():
        await asyncio.sleep(_STEP_SECONDS)
