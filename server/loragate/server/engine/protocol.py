"""What the gateway needs of an engine. `vllm.engine` is the real one."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.ready_file import ReadyForm
from loragate.adapters.names import AdapterVersion
from loragate.server.core import (
    ChatRequest,
    Delta,
    SamplingParams,
    ToolCallDelta,
)

PROBE_ID_PREFIX = "probe-"  # of the ids of the probe's own requests
LAST_RANK = 100  # of requests that give way to all others


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The base model as the engine holds it. Lengths are in tokens. `ready_form` is that of the
    ready files which the engine loads adapters from; None where it reads artifacts themselves.
    """

    name: str
    max_model_len: int
    vocab_size: int
    max_logprobs: int
    max_loras: int
    max_lora_rank: int
    default_sampling: Mapping[str, float | int] = field(default_factory=dict)
    ready_form: ReadyForm | None = None


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter version in the engine. `path`, its artifact, stays as it is until `unload` has
    returned. `ready` is its ready file in the engine's form, until `load` has returned; without
    one the engine makes its own, for this load.
    """

    version: AdapterVersion
    path: Path
    ready: Path | None = None


Placing = Callable[[LoadedAdapter], AbstractAsyncContextManager[None]]
"""What is held while an adapter is put into the engine: one at a time, with room for it."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt on its way into the engine. `id` is unique in the process.

    Where memory is short, requests of a higher `rank` wait for those of a lower, or give it up.
    """

    id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    adapter: LoadedAdapter | None = None
    cache_salt: str = ""
    rank: int = 0


class SlotFault(LoragateError):
    """A LoRA slot of the engine held other weights than were placed there."""


class ToolCallParser(Protocol):
    """Splits one choice's text into content and tool calls, as it comes."""

    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Returns the content and the pieces of tool calls that this delta completes."""
        ...


class ToolSession(Protocol):
    """A request's tools, bound to the format in which the served model calls them."""

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        """Adds what makes the model call tools as the request demands."""
        ...

    def parser(self) -> ToolCallParser:
        """A fresh parser for one choice."""
        ...


class Thought(NamedTuple):
    """What one delta says: before the answer, and of it. `tokens` are those of the reasoning."""

    reasoning: str
    content: str
    tokens: int


class ReasoningParser(Protocol):
    """Splits one choice's text into what was thought aloud and the answer, as it comes."""

    def push(self, delta: Delta) -> Thought: ...


class ReasoningSession(Protocol):
    """A chat's reasoning, in the format in which the served model thinks."""

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        """Lets the text have what its parsers look for."""
        ...

    def parser(self) -> ReasoningParser:
        """A fresh parser for one choice."""
        ...


class Engine(Protocol):
    """One base model in memory, with LoRA adapters that come and go."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def is_alive(self) -> bool:
        """False while the engine's core is gone."""
        ...

    @property
    def retry_after_seconds(self) -> float:
        """When to come again, for those who find the core gone."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What would come free without it; 0 where that cannot be told. Takes milliseconds."""
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Yields deltas until every choice has finished; closing it aborts the request.

        Raises InvalidRequest before the first delta where the engine refuses a parameter, and
        EngineDead where the engine's core is gone.
        """
        ...

    async def load(self, adapter: LoadedAdapter) -> None:
        """Puts an adapter into a slot. Raises AdapterUnavailable where the engine refuses it."""
        ...

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Takes the adapter's weights out of the engine; its directory may go afterwards. Does
        nothing where they are not there, as after a load that failed half-way.

        Raises EngineDead where the core is gone, and the weights with it.
        """
        ...

    async def check_slots(self) -> None:
        """Compares the next slot's weights with what was placed there; for when nobody waits.

        Raises SlotFault where they differ; the slot is then written anew before it is used again.
        """
        ...

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> ToolSession:
        """Raises InvalidRequest where a tool's schema cannot be compiled, or none may be chosen."""
        ...

    def reasoning(
        self, template_kwargs: Mapping[str, object], prompt_ids: Sequence[int]
    ) -> ReasoningSession | None:
        """Of a chat that was rendered with these variables; None where no model thinks aloud."""
        ...
