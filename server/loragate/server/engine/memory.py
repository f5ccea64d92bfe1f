"""Memory that an engine for a model needs. In bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.format.safetensors_header import read_header

# An allowance, on CPU: the core's own heap, and what its first steps allocate.
PROCESS_BYTES = 2**30
# An allowance, for each GPU: CUDA's context, captured graphs, and what a step allocates.
GPU_PROCESS_BYTES = 2 * 2**30
_GIB = 2**30
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class MemoryRequirement:
    """What an engine takes: the model, its cache of keys and values, and the process itself."""

    weights_bytes: int
    kv_cache_bytes: int
    process_bytes: int = PROCESS_BYTES

    @property
    def bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.process_bytes

    def __str__(self) -> str:
        return (
            f"{gib(self.bytes)} (weights {gib(self.weights_bytes)}, KV cache "
            f"{gib(self.kv_cache_bytes)}, process {gib(self.process_bytes)})"
        )


def gib(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"


def weights_bytes(folder: Path, dtype: str = "auto") -> int:
    """Of a model's folder as `engine.dtype` has it in memory; headers are read, no tensor."""
    tensors = [t for file in folder.glob("*.safetensors") for t in read_header(file).values()]
    width = {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype)
    return sum(
        tensor.end - tensor.begin
        if width is None or tensor.dtype not in _FLOATS
        else math.prod(tensor.shape) * width
        for tensor in tensors
    )


FreeBytes = Callable[[], int]
