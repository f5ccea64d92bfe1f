"""Whether the process lives and whether it takes requests: two different questions."""

from collections.abc import Callable
from typing import Literal

State = Literal["ready", "draining", "engine dead"]


class Health:
    """Liveness follows the engine; readiness ends with draining as well."""

    def __init__(self, engine_is_alive: Callable[[], bool]) -> None:
        self._engine_is_alive = engine_is_alive
        self._is_draining = False

    @property
    def state(self) -> State:
        if not self._engine_is_alive():
            return "engine dead"
        return "draining" if self._is_draining else "ready"

    @property
    def is_live(self) -> bool:
        return self._engine_is_alive()

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    def drain(self) -> None:
        """From now on not ready, for good."""
        self._is_draining = True
