"""The engines of a server as they stand: the base model's, and those of merged models."""

from dataclasses import dataclass

from loragate.server.core import MERGED
from loragate.server.engine.memory import MemoryRequirement
from loragate.server.engine.supervision import EngineState, SupervisedEngine
from loragate.server.merged.models import MergedModels


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """`name` is the base model's, or `acme/support@v3+merged`. `memory_bytes` is what it holds now,
    0 where that cannot be told; `budget_bytes` what it may take, 0 where it took all at its start.
    """

    name: str
    state: EngineState
    starts: int
    memory_bytes: int
    budget_bytes: int
    weights_bytes: int


class Engines:
    def __init__(
        self, base: SupervisedEngine, base_need: MemoryRequirement, merged: MergedModels
    ) -> None:
        self._base = base
        self._base_need = base_need
        self._merged = merged

    def statuses(self) -> tuple[EngineStatus, ...]:
        """The base model's first. Blocks for some milliseconds."""
        merged = [
            _status(f"{model.version}{MERGED}", model.engine, model.need)
            for model in self._merged.models
        ]
        return (_status(self._base.model.name, self._base, self._base_need), *merged)


def _status(name: str, engine: SupervisedEngine, need: MemoryRequirement) -> EngineStatus:
    return EngineStatus(
        name, engine.state, engine.generation, engine.memory_bytes, need.bytes, need.weights_bytes
    )
