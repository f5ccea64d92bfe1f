"""Which of the processor's instructions the compiled kernels use."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from loragate.adapters.errors import LoragateError


class UnsupportedProcessor(LoragateError):
    """The engine does not run on this processor, or not as wanted. The message says why."""


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set: the processor's flags that it needs, and the compiler's that it takes."""

    name: str
    description: str
    needs: frozenset[str]
    compiler_flags: tuple[str, ...]


_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
_AVX512 = (
    *_AVX2,
    *(f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")),
    "-mprefer-vector-width=512",
)
_HAS_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2"})
_HAS_AVX512 = _HAS_AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

AVX512_BF16 = Isa(
    "avx512_bf16",
    "AVX-512 with bfloat16 products",
    _HAS_AVX512 | {"avx512_bf16"},
    (*_AVX512, "-mavx512bf16"),
)
AVX512 = Isa("avx512", "AVX-512", _HAS_AVX512, _AVX512)
AVX2 = Isa("avx2", "AVX2 with FMA", _HAS_AVX2, _AVX2)
# Not instruction sets of their own: some processors of a set have products of bytes, some have not.
_BYTE_PRODUCTS = {
    "avx512_bf16": ("avx512_vnni", "-mavx512vnni"),
    "avx512": ("avx512_vnni", "-mavx512vnni"),
    "avx2": ("avx_vnni", "-mavxvnni"),
}
PORTABLE = Isa("portable", "the compiler's portable vectors", frozenset(), ())
NEON = Isa("neon", "NEON", frozenset(), ())  # any 64-bit Arm processor has it


def usable(
    wanted: str = "auto", *, flags: Iterable[str] | None = None, machine: str | None = None
) -> tuple[Isa, ...]:
    """What this processor has, best first; where one is wanted by name, from that one on.

    Raises UnsupportedProcessor for one that vLLM does not run on either, and where it has not got
    what is wanted.
    """
    found = _found(platform.machine() if machine is None else machine, flags)
    if wanted == "auto":
        return found
    names = [isa.name for isa in found]
    if wanted not in names:
        raise UnsupportedProcessor(
            f"engine.isa is '{wanted}', but this processor has {', '.join(names)}; leave it 'auto'."
        )
    return found[names.index(wanted) :]


def _found(machine: str, flags: Iterable[str] | None) -> tuple[Isa, ...]:
    if machine in {"aarch64", "arm64"}:
        return (NEON,)
    if machine not in {"x86_64", "AMD64"}:
        return (PORTABLE,)
    has = frozenset(cpu_flags() if flags is None else flags)
    found = tuple(
        _with_byte_products(isa, has) for isa in (AVX512_BF16, AVX512, AVX2) if isa.needs <= has
    )
    if not found and has:
        raise UnsupportedProcessor(
            f"This processor lacks {', '.join(sorted(AVX2.needs - has))}, without which the engine "
            "does not run; Intel's have it since Haswell (2013), AMD's since Zen (2017)."
        )
    return (*found, PORTABLE)


def _with_byte_products(isa: Isa, has: frozenset[str]) -> Isa:
    flag, option = _BYTE_PRODUCTS[isa.name]
    return replace(isa, compiler_flags=(*isa.compiler_flags, option)) if flag in has else isa


def cpu_flags() -> frozenset[str]:
    """The processor's features by the kernel's names; none where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())
