"""The machine that a benchmark runs on: its instructions, and how fast it reads and multiplies."""

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from loadtests.surroundings import cpu_model
from loragate.adapters.home import Home
from loragate.server.engine.cpu import native_library
from loragate.server.engine.cpu.huge_pages import HugePages
from loragate.server.engine.cpu.linear import PackedLinear

_READ_BYTES = 2**30
_ROWS, _IN, _OUT = 512, 1024, 2048
_TIMES = 5


def add_isa(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--isa",
        choices=("avx512", "avx2"),
        help="let all servers compute as on a processor with no more than these instructions",
    )


def limit_to(isa: str | None) -> None:
    """Every process that is started from here on has no more than these instructions, except for
    what asks the processor itself.
    """
    if isa is None:
        return
    folder = str(Path(__file__).parent / "limited")
    os.environ |= {
        "BENCH_ISA": isa,
        "PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))),
        "ATEN_CPU_CAPABILITY": isa,
        "ONEDNN_MAX_CPU_ISA": "AVX2" if isa == "avx2" else "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2" if isa == "avx2" else "AVX512",
        "LORAGATE_ENGINE_ISA": isa,
    }


@dataclass(frozen=True, slots=True)
class Processor:
    """What it is, and in billions a second the bytes that it reads and the operations it makes."""

    name: str  # with its cores and instructions
    reads: float
    own: float  # of our kernel, with bfloat16 weights
    torch_bfloat16: float
    torch_float32: float

    def __str__(self) -> str:
        return (
            f"{self.name}; reads {self.reads:.1f} GB/s; bfloat16 weights by our kernel "
            f"{self.own:.0f} GFLOP/s, by torch {self.torch_bfloat16:.0f}, float32 by torch "
            f"{self.torch_float32:.0f}"
        )


def measure(isa: str | None) -> Processor:
    """The head of a table. Takes some seconds, of a machine that does nothing else."""
    built = native_library.build(Home.from_environment().cache, isa or "auto")
    limited = "" if isa is None else ", of more that the processor has"
    cores = psutil.cpu_count(logical=True)
    operations = 2 * _ROWS * _IN * _OUT
    return Processor(
        f"{cpu_model()}, {cores} cores, {built.isa.description}{limited}",
        reads=_READ_BYTES / _fastest(_reading()) / 1e9,
        own=operations / _fastest(_multiplying(native_library.load(built.library))) / 1e9,
        torch_bfloat16=operations / _fastest(_multiplying_by_torch(torch.bfloat16)) / 1e9,
        torch_float32=operations / _fastest(_multiplying_by_torch(torch.float32)) / 1e9,
    )


def _fastest(work: Callable[[], object]) -> float:
    """Seconds: the machine's neighbours only ever add to them."""
    work()
    taken: list[float] = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _reading() -> Callable[[], object]:
    numbers = HugePages().empty((_READ_BYTES // 4,), torch.float32).fill_(1)
    return numbers.sum


def _multiplying(library: ctypes.CDLL) -> Callable[[], object]:
    linear = PackedLinear(library, HugePages(), torch.randn(_OUT, _IN).bfloat16())
    x = torch.randn(_ROWS, _IN).bfloat16()
    return lambda: linear.multiply(x, None)


def _multiplying_by_torch(dtype: torch.dtype) -> Callable[[], object]:
    weight, x = torch.randn(_OUT, _IN).to(dtype), torch.randn(_ROWS, _IN).to(dtype)
    return lambda: x @ weight.T
