"""The compiled kernels of the CPU path: built at the first start, called by pointer.

Built with what the machine has, for what the machine is (AVX-512, AVX2, NEON), in two seconds, and
kept. Without a C compiler there are none, and whoever asked says so.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent / "native"
_SOURCES = ("lora.c", "linear.c", "elementwise.c", "layer.c", "cast.c")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_COMPILERS = ("cc", "gcc", "clang")
_BUILD_SECONDS = 60


class KernelsUnavailable(Exception):
    """There is no compiler, or it failed. The message says which and what to do."""


def build(cache: Path) -> Path:
    """Compiles the kernels into `cache`, unless they are there, and returns the library's path.

    Raises KernelsUnavailable.
    """
    wanted = (os.environ.get("CC", ""), *_COMPILERS)
    compiler = next(filter(None, map(shutil.which, wanted)), None)
    if compiler is None:
        raise KernelsUnavailable("there is no C compiler; install gcc")
    library = cache / f"kernels-{_fingerprint(compiler)}.so"
    if not library.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                built = Path(folder) / library.name
                _compile(compiler, built)
                built.replace(library)  # in one step: two servers may start at once
        except OSError as error:
            raise KernelsUnavailable(f"{cache} cannot be written: {error}") from error
    return library


def load(library: Path) -> ctypes.CDLL:
    """Its OpenMP is torch's, if torch is loaded: the same name, so the same threads."""
    return ctypes.CDLL(str(library))


def _fingerprint(compiler: str) -> str:
    """Of everything that the library depends on: a home may move to another machine."""
    digest = hashlib.sha256()
    for source in sorted(_FOLDER.iterdir()):
        if source.suffix in {".c", ".h"}:
            digest.update(source.read_bytes())
    digest.update(f"{compiler} {_FLAGS} {platform.machine()} {_cpu_flags()}".encode())
    return digest.hexdigest()[:16]


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, library: Path) -> None:
    sources = [str(_FOLDER / name) for name in _SOURCES]
    command = [compiler, *_FLAGS, "-o", str(library), *sources, "-lm"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{compiler} did not run: {error}") from error
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KernelsUnavailable(f"{compiler} failed: {last_line}")
