"""The gate's prompts are read some tokens a step while others generate, and at once otherwise."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from loragate.server.engine.cpu import scheduler
from loragate.server.engine.cpu.scheduler import throttling_probes
from loragate.server.engine.protocol import PROBE_ID_PREFIX


@dataclass
class Request:
    request_id: str
    num_computed_tokens: int
    num_prompt_tokens: int = 20


class Recorder(Scheduler):
    """Tells with which bound vLLM would have scheduled."""

    def __init__(self, running: list[Request], waiting: list[Request]) -> None:
        self.running: Any = running
        self.waiting: Any = waiting
        self.scheduler_config: Any = SimpleNamespace(long_prefill_token_threshold=0)
        self.structured_output_manager: Any = SimpleNamespace()

    def schedule(self, throttle_prefills: bool = False) -> Any:
        return self.scheduler_config.long_prefill_token_threshold


ANSWERING = Request("a", 20)
ASKING = Request("b", 5)
CHECKED = Request(f"{PROBE_ID_PREFIX}1-abc", 0)


@dataclass(frozen=True)
class Case:
    is_bounded: bool
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(True, [ANSWERING], [CHECKED]), id="while others generate"),
        pytest.param(Case(True, [ANSWERING, CHECKED]), id="until all of it is read"),
        pytest.param(Case(False, [], [CHECKED]), id="not on an idle engine"),
        pytest.param(Case(False, [ANSWERING, ASKING], [CHECKED]), id="not beside a question"),
        pytest.param(Case(False, [ANSWERING], [ASKING]), id="never a question of a tenant"),
    ],
)
def test_only_the_gates_prompts_are_read_in_parts(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "bound_grammars", lambda manager: None)  # it has none
    made: Any = throttling_probes(Recorder)

    bound = made(case.running, case.waiting).schedule()

    assert (0 < bound < CHECKED.num_prompt_tokens) == case.is_bounded
    assert case.is_bounded or bound == 0
