"""Small engines with behaviour, for tests of what stands around the engine."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from loragate.adapters.names import AdapterVersion
from loragate.server.core import (
    ChatRequest,
    Delta,
    SamplingParams,
    StructuredOutput,
    TokenLogprob,
    ToolCallDelta,
)
from loragate.server.engine.protocol import (
    Engine,
    EngineRequest,
    LoadedAdapter,
    Placing,
    ReasoningSession,
    ServedModel,
)
from loragate.server.errors import AdapterUnavailable, EngineDead

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

    `pace_seconds` is the time of one step. An adapter named in `refused` cannot be loaded. Once it
    is no longer alive, what generates fails, and what loads or unloads is never answered.
    """

    model: ServedModel = TINY_MODEL
    pace_seconds: float = 0.0
    is_alive: bool = True
    retry_after_seconds: float = 5.0
    memory_bytes: int = 0
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    seen: list[EngineRequest] = field(default_factory=list)
    loaded: dict[int, LoadedAdapter] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    without_effect: set[str] = field(default_factory=set)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.id.startswith("probe-"):
            yield self._scored(request)
            return
        self.seen.append(request)
        self.running.add(request.id)
        ids = list(request.prompt_ids)
        count = min(request.sampling.max_tokens or 1, len(ids))
        try:
            for step, token_id in enumerate(ids[-count:]):
                await asyncio.sleep(self.pace_seconds)
                if not self.is_alive:
                    raise EngineDead("The engine was killed.")
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

    def _scored(self, request: EngineRequest) -> Delta:
        """Scores that tell an adapter from the base, unless it is in `without_effect`."""
        adapter = request.adapter
        has_effect = adapter is not None and str(adapter.version) not in self.without_effect
        logprob = -2.0 if has_effect else -1.0
        scores = [TokenLogprob("", token_id, logprob) for token_id in request.prompt_ids[1:]]
        return Delta(index=0, prompt_logprobs=(None, *scores), finish_reason="length")

    async def load(self, adapter: LoadedAdapter) -> None:
        await asyncio.sleep(self.pace_seconds)
        await self._answer()
        if str(adapter.version) in self.refused:
            raise AdapterUnavailable(f"The engine refuses adapter {adapter.version}: it is bad.")
        self.loads.append(str(adapter.version))
        self.loaded[adapter.version.lora_id] = adapter

    async def unload(self, adapter: LoadedAdapter) -> None:
        await self._answer()
        if self.loaded.pop(adapter.version.lora_id, None) is not None:
            self.unloads.append(str(adapter.version))

    async def check_slots(self) -> None:
        pass

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> "EchoTools":
        return EchoTools(request)

    def reasoning(
        self, template_kwargs: Mapping[str, object], prompt_ids: Sequence[int]
    ) -> ReasoningSession | None:
        return None

    async def _answer(self) -> None:
        if not self.is_alive:
            await asyncio.Event().wait()


@dataclass
class GatedEngine(EchoEngine):
    """Loads an adapter only while its gate is open."""

    gate: asyncio.Event | None = None

    async def load(self, adapter: LoadedAdapter) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await super().load(adapter)


@dataclass
class EchoEngines:
    """Starts one `EchoEngine` after another; the next `failing` starts fail."""

    model: ServedModel = TINY_MODEL
    pace_seconds: float = 0.0
    failing: int = 0
    attempts: int = 0
    made: list[EchoEngine] = field(default_factory=list)
    closed: list[EchoEngine] = field(default_factory=list)

    @property
    def last(self) -> EchoEngine:
        return self.made[-1]

    @asynccontextmanager
    async def start(self) -> AsyncIterator[EchoEngine]:
        self.attempts += 1
        if self.failing:
            self.failing -= 1
            raise RuntimeError("There is no memory for the model.")
        engine = EchoEngine(self.model, pace_seconds=self.pace_seconds)
        self.made.append(engine)
        try:
            yield engine
        finally:
            self.closed.append(engine)


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


@dataclass
class DirectLoader:
    """Loads versions into an engine without checking them or telling the registry."""

    engine: Engine

    async def load(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        adapter = LoadedAdapter(version, Path(version.digest))
        async with placing(adapter):
            await self.engine.load(adapter)
        return adapter

    async def unload(self, adapter: LoadedAdapter) -> None:
        await self.engine.unload(adapter)
