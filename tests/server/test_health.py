import pytest

from loragate.server.engine.supervision import EngineState
from loragate.server.telemetry.health import Health


def test_a_server_with_a_live_engine_is_live_and_ready() -> None:
    health = Health(lambda: "alive")
    assert (health.is_live, health.is_ready, health.state) == (True, True, "ready")


@pytest.mark.parametrize("engine", ["alive", "restarting"])
def test_a_draining_server_lives_on_but_is_not_ready(engine: EngineState) -> None:
    health = Health(lambda: engine)
    health.drain()
    assert (health.is_live, health.is_ready, health.state) == (True, False, "draining")


def test_a_server_whose_engine_restarts_lives_on_but_is_not_ready() -> None:
    health = Health(lambda: "restarting")
    assert (health.is_live, health.is_ready, health.state) == (True, False, "restarting")


def test_a_server_whose_engine_never_comes_back_is_neither_draining_or_not() -> None:
    health = Health(lambda: "dead")
    assert (health.is_live, health.is_ready, health.state) == (False, False, "engine dead")
    health.drain()
    assert (health.is_live, health.is_ready, health.state) == (False, False, "engine dead")


def test_a_server_with_a_failing_background_task_lives_on_but_is_not_ready() -> None:
    failing: list[str] = []
    health = Health(lambda: "alive", lambda: failing)
    assert health.is_ready
    failing += ["usage records", "alias reconciler"]
    said = "degraded: usage records, alias reconciler"
    assert (health.is_live, health.is_ready, health.state) == (True, False, said)
