"""An engine that answers with deltas that a test has written."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import msgspec

from loragate.server.core import (
    ChatRequest,
    Delta,
    FinishReason,
    SamplingParams,
    ToolCallDelta,
)
from loragate.server.engine.protocol import EngineRequest
from support.engines.echo_engine import EchoEngine, EchoToolParser, EchoTools


@dataclass
class ScriptedEngine(EchoEngine):
    """Answers every request with `script`, then raises `failure` if there is one."""

    script: Sequence[Delta] = ()
    failure: Exception | None = None
    asked: list[ChatRequest] = field(default_factory=list)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.id.startswith("probe-"):
            async for delta in super().generate(request):
                yield delta
            return
        self.seen.append(request)
        for delta in self.script:
            yield delta
        if self.failure is not None:
            raise self.failure

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> "ScriptedTools":
        self.asked.append(request)
        return ScriptedTools(request)


class ScriptedTools(EchoTools):
    """Leaves the calls to the script."""

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        return sampling

    def parser(self) -> "ScriptedCalls":
        return ScriptedCalls("")


class ScriptedCalls(EchoToolParser):
    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        return delta.text, delta.tool_calls


def said(*texts: str, finish_reason: FinishReason = "stop") -> list[Delta]:
    """One delta of one token for each text; the last one ends the answer."""
    deltas = [Delta(index=0, text=text, token_ids=(5,)) for text in texts]
    last = msgspec.structs.replace(deltas[-1], finish_reason=finish_reason)
    return [*deltas[:-1], last]
