"""Memory of the GPUs that this process may use, as the driver tells it through NVML.

Follows CUDA_VISIBLE_DEVICES as CUDA does, down to an instance of a GPU that is divided (MIG). CUDA
itself is not asked: that would set it up in this process, which takes memory of the GPU for good.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from loragate.adapters.errors import LoragateError

Handle = Any  # NVML's own; nothing but NVML can tell what is in it


class GpusUnknown(LoragateError):
    """NVML, or the GPU that was named, is not there."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Of one or several GPUs together, in bytes."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """`nvml` is the module `pynvml` of the package nvidia-ml-py, or one that answers like it."""

    nvml: Any
    environment: Mapping[str, str]

    @classmethod
    def from_driver(cls) -> "Gpus":
        """Raises GpusUnknown."""
        try:
            return cls(import_module("pynvml"), os.environ)
        except ModuleNotFoundError:
            raise GpusUnknown(
                "The GPU's memory cannot be measured without NVML; install the package "
                "nvidia-ml-py (it is part of loragate[cuda])."
            ) from None

    def memory(self, count: int = 1) -> GpuMemory:
        """Of the first `count` GPUs. Each gets an equal share of a model, so the one with the least
        memory counts for all. Raises GpusUnknown.
        """
        with self._asking():
            handles = list(self._visible())
            if len(handles) < count:
                raise GpusUnknown(self._too_few(len(handles), count))
            found = [self.nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles[:count]]
        return GpuMemory(
            count * min(int(memory.free) for memory in found),
            count * min(int(memory.total) for memory in found),
        )

    def used_by(self, processes: Collection[int]) -> int:
        """What these processes hold of all visible GPUs. 0 where that is not told, as in a
        container with process ids of its own. Raises GpusUnknown.
        """
        with self._asking():
            return sum(
                int(process.usedGpuMemory or 0)
                for handle in self._visible()
                for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                if process.pid in processes
            )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            self.nvml.nvmlInit()
            try:
                yield
            finally:
                self.nvml.nvmlShutdown()
        except self.nvml.NVMLError as error:
            raise GpusUnknown(f"The GPU's memory cannot be measured: NVML says {error}.") from None

    def _visible(self) -> Iterator[Handle]:
        """In CUDA's order, which `vllm.forkserver` makes that of NVML. As CUDA does, it stops at
        the first entry that names nothing.
        """
        said = self.environment.get("CUDA_VISIBLE_DEVICES")
        count = self.nvml.nvmlDeviceGetCount()
        entries = map(str, range(count)) if said is None else said.split(",")
        for entry in entries:
            handle = self._named(entry.strip(), count)
            if handle is None:
                return
            yield handle

    def _named(self, entry: str, count: int) -> Handle | None:
        """By an index, a UUID or the beginning of one."""
        if entry.isdecimal():
            if int(entry) >= count:
                return None
            return self._instance_of(self.nvml.nvmlDeviceGetHandleByIndex(int(entry)))
        if entry.startswith("MIG-GPU-"):  # of older drivers: MIG-GPU-<uuid>/<instance>/<compute>
            gpu, *instance = entry.removeprefix("MIG-").split("/")
            found = [
                mig
                for whole in self._whole()
                if self._uuid(whole) == gpu
                for mig in self._instances(whole)
                if instance == [str(number) for number in self._instance_ids(mig)]
            ]
        elif entry.startswith("MIG-"):
            instances = [mig for whole in self._whole() for mig in self._instances(whole)]
            found = [mig for mig in instances if self._uuid(mig).startswith(entry)]
        elif entry.startswith("GPU-"):
            gpus = [whole for whole in self._whole() if self._uuid(whole).startswith(entry)]
            found = [self._instance_of(whole) for whole in gpus]
        else:
            return None
        return found[0] if len(found) == 1 else None

    def _whole(self) -> Iterator[Handle]:
        for index in range(self.nvml.nvmlDeviceGetCount()):
            yield self.nvml.nvmlDeviceGetHandleByIndex(index)

    def _instance_of(self, whole: Handle) -> Handle:
        """The GPU, or its first instance where it is divided: all that CUDA then shows of it."""
        return next(self._instances(whole), whole)

    def _instances(self, whole: Handle) -> Iterator[Handle]:
        for index in range(self._most_instances(whole)):
            try:
                yield self.nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index)
            except self.nvml.NVMLError:  # there is none of this number
                continue

    def _most_instances(self, whole: Handle) -> int:
        try:
            is_divided, _ = self.nvml.nvmlDeviceGetMigMode(whole)
            return self.nvml.nvmlDeviceGetMaxMigDeviceCount(whole) if is_divided else 0
        except self.nvml.NVMLError:  # this kind of GPU cannot be divided
            return 0

    def _instance_ids(self, mig: Handle) -> tuple[int, int]:
        return (
            self.nvml.nvmlDeviceGetGpuInstanceId(mig),
            self.nvml.nvmlDeviceGetComputeInstanceId(mig),
        )

    def _uuid(self, handle: Handle) -> str:
        uuid = self.nvml.nvmlDeviceGetUUID(handle)
        return uuid.decode() if isinstance(uuid, bytes) else uuid  # bytes in older versions

    def _too_few(self, visible: int, count: int) -> str:
        said = self.environment.get("CUDA_VISIBLE_DEVICES")
        which = "there" if said is None else f"named by CUDA_VISIBLE_DEVICES={said}"
        if not visible:
            return f"No GPU is {which}."
        return f"{visible} GPUs are {which}, and engine.tensor_parallel_size is {count}."
