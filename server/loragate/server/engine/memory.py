"""Memory: what an engine for a model needs of it, and what is free. In bytes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from loragate.adapters.format.safetensors_header import read_header

# An allowance, on CPU: the core's own heap, and what its first steps allocate.
PROCESS_BYTES = 2**30
# An allowance, on CUDA: the context, captured graphs, and what a step of the engine allocates.
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


def free_host_bytes(groups: "ControlGroups | None" = None) -> int:
    """What the machine or, if that is less, the container or service can still give."""
    free = [group.free_bytes for group in (groups or ControlGroups()).limited()]
    return max(0, min([psutil.virtual_memory().available, *free]))


def host_bytes(groups: "ControlGroups | None" = None) -> int:
    """All that the machine or, if that is less, the container or service has."""
    limits = [group.limit_bytes for group in (groups or ControlGroups()).limited()]
    return min([psutil.virtual_memory().total, *limits])


@dataclass(frozen=True, slots=True)
class LimitedGroup:
    limit_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """Linux's control groups, version 2 or 1, of which this process is in one and all above it.

    A container sees its own group at the root of `mount`; a service of systemd has its own below.
    """

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def limited(self) -> Iterator[LimitedGroup]:
        """Those with a limit of memory."""
        for folder, limit_file, usage_file, cache in self._places():
            try:
                limit = int((folder / limit_file).read_text())
                usage = int((folder / usage_file).read_text())
            except (OSError, ValueError):  # no such group, or no limit: "max"
                continue
            # Pages of files that the kernel gives back before anybody has to end count as used.
            yield LimitedGroup(limit, limit - max(0, usage - _statistic(folder, cache)))

    def _places(self) -> Iterator[tuple[Path, str, str, str]]:
        try:
            lines = self.membership.read_text().splitlines()
        except OSError:
            lines = []
        paths = {
            controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)
        }
        for folder in _and_above(self.mount, paths.get("", "/")):
            yield folder, "memory.max", "memory.current", "inactive_file"
        for folder in _and_above(self.mount / "memory", paths.get("memory", "/")):
            yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _and_above(mount: Path, group: str) -> Iterator[Path]:
    parts = group.strip("/").split("/")
    folder = mount if ".." in parts else mount.joinpath(*parts)  # ..: outside of this namespace
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _statistic(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return int(dict(line.split(maxsplit=1) for line in lines)[name])
    except (OSError, KeyError, ValueError):
        return 0


FreeBytes = Callable[[], int]
