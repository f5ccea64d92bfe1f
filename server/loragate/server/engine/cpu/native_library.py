"""The compiled kernels of the CPU path: built at the first start, called by pointer.

Built with the compiler that the machine has, for the best instructions that the processor has and
the compiler knows, in some seconds, and kept. Without a C compiler there are none, and whoever
asked says so.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loragate.server.engine.cpu.isa import Isa, cpu_flags, usable

_FOLDER = Path(__file__).parent / "native"
_SOURCES = ("lora.c", "linear.c", "elementwise.c", "layer.c")
_FLAGS = ("-O3", "-mtune=native", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_COMPILERS = ("cc", "gcc", "clang")
_BUILD_SECONDS = 60


class KernelsUnavailable(Exception):
    """There is no compiler, or it failed. The message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Built:
    """The library, and the instructions that it uses."""

    library: Path
    isa: Isa


def build(cache: Path, isa: str = "auto") -> Built:
    """Compiles the kernels into `cache`, unless they are there.

    A compiler that is older than the processor gets the next lower instructions. Raises
    KernelsUnavailable, and UnsupportedProcessor as `isa.usable` does.
    """
    isas = usable(isa)
    wanted = (os.environ.get("CC", ""), *_COMPILERS)
    compiler = next(filter(None, map(shutil.which, wanted)), None)
    if compiler is None:
        raise KernelsUnavailable("there is no C compiler; install gcc")
    failed: KernelsUnavailable | None = None
    for each in isas:
        library = cache / f"kernels-{each.name}-{_fingerprint(compiler, each)}.so"
        try:
            if not library.exists():
                _build(compiler, each, library)
        except KernelsUnavailable as error:
            failed = failed or error
        else:
            return Built(library, each)
    assert failed is not None
    raise failed


def _build(compiler: str, isa: Isa, library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            _compile(compiler, isa, built)
            built.replace(library)  # in one step: two servers may start at once
    except OSError as error:
        raise KernelsUnavailable(f"{library.parent} cannot be written: {error}") from error


def load(library: Path) -> ctypes.CDLL:
    """Its OpenMP is torch's, if torch is loaded: the same name, so the same threads."""
    return ctypes.CDLL(str(library))


def _fingerprint(compiler: str, isa: Isa) -> str:
    """Of everything that the library depends on: a home may move to another machine."""
    digest = hashlib.sha256()
    for source in sorted(_FOLDER.iterdir()):
        if source.suffix in {".c", ".h"}:
            digest.update(source.read_bytes())
    has = sorted(cpu_flags())
    flags = (*_FLAGS, *isa.compiler_flags)
    digest.update(f"{compiler} {flags} {platform.machine()} {has}".encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, isa: Isa, library: Path) -> None:
    sources = [str(_FOLDER / name) for name in _SOURCES]
    command = [compiler, *_FLAGS, *isa.compiler_flags, "-o", str(library), *sources, "-lm"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{compiler} did not run: {error}") from error
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KernelsUnavailable(f"{compiler} failed: {last_line}")
