"""Small engines with behaviour, for tests of what stands around the engine."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from loragate.server.core import ChatRequest, Delta, SamplingParams, StructuredOutput, ToolCallDelta
from loragate.server.engine import EngineRequest, LoadedAdapter, ServedModel
from loragate.server.errors import AdapterUnavailable

TINY_MODEL = ServedModel(
    name="tiny",
    max_model_len=256,
    vocab_size=512,
    max_logprobs=5,
    max_loras=2,
    max_lora_rank=16,
)


@dataclass
class EchoEngine:
    """Answers each prompt with its own last tokens, one a step, and remembers what is running.

    `pace_seconds` is the time of one step. An adapter named in `refused` cannot be loaded.
    """

    model: ServedModel = TINY_MODEL
    pace_seconds: float = 0.0
    is_alive: bool = True
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    seen: list[EngineRequest] = field(default_factory=list)
    loaded: dict[int, LoadedAdapter] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        self.seen.append(request)
        self.running.add(request.id)
        ids = list(request.prompt_ids)
        count = min(request.sampling.max_tokens or 1, len(ids))
        try:
            for step, token_id in enumerate(ids[-count:]):
                await asyncio.sleep(self.pace_seconds)
                for index in range(request.sampling.n):
                    is_last = step == count - 1
                    yield Delta(
                        index=index,
                        text=f" t{token_id}",
                        token_ids=(token_id,),
                        finish_reason="length" if is_last else None,
                    )
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request.id)
            raise
        finally:
            self.running.discard(request.id)

    async def load(self, adapter: LoadedAdapter) -> None:
        await asyncio.sleep(self.pace_seconds)
        if str(adapter.version) in self.refused:
            raise AdapterUnavailable(f"The engine refuses adapter {adapter.version}: it is bad.")
        self.loads.append(str(adapter.version))
        self.loaded[adapter.version.lora_id] = adapter

    async def unload(self, adapter: LoadedAdapter) -> None:
        self.unloads.append(str(adapter.version))
        del self.loaded[adapter.version.lora_id]

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> "EchoTools":
        return EchoTools(request)


@dataclass
class EchoTools:
    """Turns the whole text of a choice into one call of the request's first tool."""

    request: ChatRequest

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        return replace(sampling, structured=StructuredOutput("json_object"))

    def parser(self) -> "EchoToolParser":
        return EchoToolParser(self.request.tools[0].name)


@dataclass
class EchoToolParser:
    name: str
    has_started: bool = False

    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if self.has_started:
            return "", (ToolCallDelta(0, arguments=delta.text),)
        self.has_started = True
        return "", (ToolCallDelta(0, "call-1", self.name, delta.text),)
