"""How to work beside an engine that wants every core: in pieces, with pauses."""

import asyncio
import time
from collections.abc import Callable

# A piece costs the step that it meets as much time as it takes itself, since an engine on a few
# cores goes no faster than its slowest core; and each time that it begins, again as much as a short
# piece does. So neither one long piece nor hundreds of short ones: at most one to a step.
_WORK_SECONDS = 0.006
_STEP_SECONDS = 0.06  # of an engine on two cores; one on a GPU takes less


class Pace:
    """For one job in one thread, which calls `rest` every millisecond or so."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        """`is_busy` says whether anybody would notice; without, there are no pauses."""
        self._is_busy = is_busy
        self._busy_since = time.perf_counter()

    def rest(self) -> None:
        if time.perf_counter() - self._busy_since > _WORK_SECONDS:
            if self._is_busy():
                time.sleep(_STEP_SECONDS)
            self._busy_since = time.perf_counter()


async def let_steps_pass(is_busy: Callable[[], bool]) -> None:
    """Between two pieces of some milliseconds each, so that they do not hit the same step."""
    if is_busy():
        await asyncio.sleep(_STEP_SECONDS)
