"""vLLM's scheduler, with the prompts of the check in the engine read some tokens at a time.

A step takes as long as it has tokens, on a CPU about a millisecond for each, and every stream waits
for its end. Whoever asks a long question waits for it; a version that is being checked should not
let others wait. Grammars are bounded here as well, since it is the scheduler that follows them.
"""

import logging
from itertools import chain
from typing import Any

from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from loragate.server.engine.protocol import PROBE_ID_PREFIX
from loragate.server.engine.vllm.grammars import bound_grammars

# With one stream more in a step, and its adapter, two milliseconds more than these take.
_TOKENS_A_STEP = 3


def throttling_probes(scheduler: type[SchedulerInterface]) -> type[SchedulerInterface]:
    """That class of vLLM's, which depends on its settings, with throttled prompts of the publish
    check in the engine, and with bounded grammars.
    """
    # vLLM warns of any scheduler but its own; this one changes a bound that vLLM has.
    logging.getLogger("vllm.config.scheduler").setLevel(logging.ERROR)
    return type("ThrottledProbeScheduler", (ThrottledProbeScheduler, scheduler), {})


class ThrottledProbeScheduler(Scheduler):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        bound_grammars(self.structured_output_manager)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        bound = _TOKENS_A_STEP if self._is_only_the_gate_reading() else 0
        self.scheduler_config.long_prefill_token_threshold = bound
        return super().schedule(throttle_prefills)

    def _is_only_the_gate_reading(self) -> bool:
        """Whether somebody generates, and no prompts are to be read but the check's."""
        reading = filter(_is_reading, chain(self.running, self.waiting))
        return all(map(_is_of_gate, reading)) and not all(map(_is_reading, self.running))


def _is_reading(request: Request) -> bool:
    return request.num_computed_tokens < request.num_prompt_tokens


def _is_of_gate(request: Request) -> bool:
    return request.request_id.startswith(PROBE_ID_PREFIX)
