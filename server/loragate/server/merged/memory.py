"""Memory for merged models: what is promised to engines, what is free, and what fits."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.errors import LoragateError
from loragate.server.engine.memory import PROCESS_BYTES, MemoryRequirement, gib, weights_bytes
from loragate.server.engine.protocol import Engine
from loragate.server.merged.backend import MergedBackend


class InsufficientMemory(LoragateError):
    """A merged model, or the making of one, would need more memory than there is."""


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Memory for merged models: each one's cache, and what is to stay free beside all of them.
    `dtype` is `engine.dtype`, `process_bytes` what an engine takes besides weights and cache, and
    `merging_bytes` what the making of a merged model takes of the host for its minute. `base_need`
    is the base model's engine's. Where engines compute on a GPU (`is_gpu`), needs are of its memory
    and a running engine has taken all of its own; on a CPU it may not have yet.
    """

    kv_cache_bytes: int
    reserve_bytes: int
    dtype: str
    base_need: MemoryRequirement
    merging_bytes: int
    process_bytes: int = PROCESS_BYTES
    is_gpu: bool = False

    def outstanding(self, need: MemoryRequirement, engine: Engine) -> int:
        """What the engine has been promised and not taken yet."""
        if self.is_gpu:
            return 0 if engine.is_alive else need.bytes
        return max(0, need.bytes - engine.memory_bytes)


class MergedMemory:
    """Whether a further engine, or the making of a merged model, fits into memory now.

    What an engine was promised and has not taken yet counts as taken.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        backend: MergedBackend,
        base_engine: Engine,
        promised: Callable[[], Iterable[tuple[MemoryRequirement, Engine]]],
    ) -> None:
        """`promised` are the merged models' engines, each with what it was promised."""
        self._budget = budget
        self._backend = backend
        self._base_engine = base_engine
        self._promised = promised

    def need_of(self, folder: Path) -> MemoryRequirement:
        """Of an engine on the merged model in that folder, which is read."""
        weights = weights_bytes(folder, self._budget.dtype)
        return MemoryRequirement(weights, self._budget.kv_cache_bytes, self._budget.process_bytes)

    async def require_for_engine(self, need: MemoryRequirement) -> None:
        """Raises InsufficientMemory."""
        free = await asyncio.to_thread(self._free_bytes)
        if need.bytes > free:
            raise InsufficientMemory(
                f"it needs {need}, and {gib(max(0, free))} are free beside the "
                f"{gib(self._budget.reserve_bytes)} that stay so (merged.reserve_gib) and what the "
                "engines that run may still take; free memory or lower merged.kv_cache_gib, and "
                "ask again"
            )

    async def require_for_merging(self) -> None:
        """Raises InsufficientMemory."""
        free = await asyncio.to_thread(self._free_host_bytes)
        if self._budget.merging_bytes > free:
            raise InsufficientMemory(
                f"merging takes {gib(self._budget.merging_bytes)} of the host's memory for a "
                f"minute, and {gib(max(0, free))} are free; make the merged model elsewhere, or "
                "free memory and ask again"
            )

    def _free_bytes(self) -> int:
        """Where engines compute, less what is kept in reserve and what engines have yet to take."""
        return self._backend.free_bytes() - self._budget.reserve_bytes - self._outstanding()

    def _free_host_bytes(self) -> int:
        """As `_free_bytes`, of the host, of which engines on a GPU have taken what they need."""
        left = self._backend.free_host_bytes() - self._budget.reserve_bytes
        return left - (0 if self._budget.is_gpu else self._outstanding())

    def _outstanding(self) -> int:
        promised = [(self._budget.base_need, self._base_engine), *self._promised()]
        return sum(self._budget.outstanding(need, engine) for need, engine in promised)
