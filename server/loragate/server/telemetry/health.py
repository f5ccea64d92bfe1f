"""Whether the process lives and whether it takes requests: two different questions."""

from collections.abc import Callable, Sequence

from loragate.server.engine.supervision import EngineState


class Health:
    """Live until the engine is gone for good; ready while it is there, the server stays, and no
    background task fails that answers depend on.
    """

    def __init__(
        self,
        engine_state: Callable[[], EngineState],
        degraded: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`degraded` names the background tasks that have been failing for too long."""
        self._engine_state = engine_state
        self._degraded = degraded
        self._is_draining = False

    @property
    def state(self) -> str:
        """`ready`, `draining`, `restarting`, `engine dead` or `degraded: ` and what fails."""
        match self._engine_state():
            case "dead":
                return "engine dead"
            case _ if self._is_draining:
                return "draining"
            case "restarting":
                return "restarting"
            case "alive":
                failing = ", ".join(self._degraded())
                return f"degraded: {failing}" if failing else "ready"

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
