"""Whether the process lives and whether it takes requests: two different questions."""

from collections.abc import Callable
from typing import Literal

from loragate.server.supervision import EngineState

State = Literal["ready", "draining", "restarting", "engine dead"]


class Health:
    """Live until the engine is gone for good; ready while it is there and the server stays."""

    def __init__(self, engine_state: Callable[[], EngineState]) -> None:
        self._engine_state = engine_state
        self._is_draining = False

    @property
    def state(self) -> State:
        match self._engine_state():
            case "dead":
                return "engine dead"
            case _ if self._is_draining:
                return "draining"
            case "restarting":
                return "restarting"
            case "alive":
                return "ready"

    @property
    def is_live(self) -> bool:
        """True while the engine restarts: to restart the process as well would only take longer."""
        return self.state != "engine dead"

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    def drain(self) -> None:
        """From now on not ready, for good."""
        self._is_draining = True
