"""This machine's cores, memory and GPU, and the processes that train one run together.

`accelerate launch` starts several processes for one run; mostly there is one.
"""

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import PartialState

from loragate.adapters.host_memory import free_host_bytes
from loragate.trainer.errors import TrainingError
from loragate.trainer.settings import Precision, TrainingSettings

_LEAST_SPEEDUP = 1.2  # of bf16 over fp32, below which its rounding is not worth it
_ROUNDS = 5


def process_count() -> int:
    """How many processes train this run, as their launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that writes what all of them share."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_process_first() -> Iterator[None]:
    """In the other processes the block begins when the first one has left it: they read the files
    that it writes.
    """
    if process_count() == 1:
        yield
        return
    with PartialState().main_process_first():
        yield


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process. Every process has to call this, or all hang."""
    if process_count() == 1:
        return flag
    asked = torch.tensor(int(flag), device=PartialState().device)
    torch.distributed.all_reduce(asked)
    return bool(asked)


def threads() -> int:
    """The cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def device(settings: TrainingSettings) -> str:
    """cpu or cuda. Raises TrainingError for one that is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "[training] device is 'cuda', and PyTorch finds no CUDA device; install its CUDA build "
            "or a driver, or set device = 'cpu'"
        )
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def faster_precision(device: str, tokens: int, hidden: int, intermediate: int) -> Precision:
    """On a CPU by timing the product that a model spends most of its time in, of (tokens, hidden)
    and (hidden, intermediate), and its backward product. On a GPU bf16 where it has it.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    seconds = {
        dtype: _product_seconds(dtype, tokens, hidden, intermediate)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return "bf16" if seconds[torch.float32] > _LEAST_SPEEDUP * seconds[torch.bfloat16] else "fp32"


def free_memory_bytes(device: str) -> int:
    """The free memory of the GPU, or of the machine within its control group's limit."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return free_host_bytes()


def peak_memory_bytes(device: str) -> int:
    """The most memory that this process has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe() -> str:
    """`AMD EPYC, 2 cores, 23 GiB; Linux 6.1`."""
    memory = psutil.virtual_memory().total / 2**30
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_cpu_name()}, {threads()} cores, {memory:.0f} GiB{gpu}; "
        f"{platform.system()} {platform.release()}"
    )


def _product_seconds(dtype: torch.dtype, tokens: int, hidden: int, intermediate: int) -> float:
    states = torch.randn(tokens, hidden).to(dtype)
    weight = torch.randn(intermediate, hidden).to(dtype)
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        torch.nn.functional.linear(states, weight) @ weight
        best = min(best, time.perf_counter() - began)
    return best


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
