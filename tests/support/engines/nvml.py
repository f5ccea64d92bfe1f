"""Answers like the module `pynvml` of a machine with these GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, field


class NVMLError(Exception):
    """As NVML's own: for what is not there or not supported."""


@dataclass(frozen=True)
class Memory:
    free: int
    total: int


@dataclass(frozen=True)
class Process:
    pid: int
    usedGpuMemory: int | None  # noqa: N815 - NVML's name


@dataclass(frozen=True)
class Instance:
    """A part of a divided GPU."""

    uuid: str
    free: int
    total: int
    ids: tuple[int, int] = (1, 0)
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True)
class Gpu:
    uuid: str
    free: int
    total: int
    instances: tuple[Instance | None, ...] | None = None  # None: it cannot be divided
    processes: tuple[Process, ...] = ()


@dataclass
class Nvml:
    gpus: Sequence[Gpu] = ()
    has_driver: bool = True
    open: int = 0
    NVMLError: type[Exception] = field(default=NVMLError, init=False)

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, device: Gpu | Instance) -> str:  # noqa: N802
        return device.uuid

    def nvmlDeviceGetMemoryInfo(self, device: Gpu | Instance) -> Memory:  # noqa: N802
        return Memory(device.free, device.total)

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> tuple[int, int]:  # noqa: N802
        if gpu.instances is None:
            raise NVMLError("Not Supported")
        return int(bool(gpu.instances)), 1

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:  # noqa: N802
        return len(gpu.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> Instance:  # noqa: N802
        instance = (gpu.instances or ())[index]
        if instance is None:
            raise NVMLError("Not Found")
        return instance

    def nvmlDeviceGetGpuInstanceId(self, instance: Instance) -> int:  # noqa: N802
        return instance.ids[0]

    def nvmlDeviceGetComputeInstanceId(self, instance: Instance) -> int:  # noqa: N802
        return instance.ids[1]

    def nvmlDeviceGetComputeRunningProcesses(  # noqa: N802
        self, device: Gpu | Instance
    ) -> Sequence[Process]:
        return device.processes
