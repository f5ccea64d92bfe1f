"""The kernels on processors that this machine has not got, by an emulator.

Needs a compiler and QEMU for them (Debian: `gcc-aarch64-linux-gnu qemu-user`), and is left out
where there is none. What this processor has is run by the same program without them.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from loragate.server.engine.cpu import native_library
from loragate.server.engine.cpu.isa import AVX512, NEON, cpu_flags, usable

NATIVE = Path(native_library.__file__).parent / "native"
CHECK = Path(__file__).parents[1] / "support" / "engines" / "kernel_check.c"
KERNELS = ("lora.c", "linear.c", "elementwise.c")


def checked(folder: Path, compiler: str, flags: Sequence[str], run_by: Sequence[str] = ()) -> str:
    """What the program says; fails where a kernel is wrong."""
    program = folder / "kernel_check"
    sources = (str(CHECK), *(str(NATIVE / name) for name in KERNELS))
    options = ("-O3", "-fopenmp", "-static", "-Wno-psabi", f"-I{NATIVE}", *flags)
    subprocess.run([compiler, *options, "-o", str(program), *sources, "-lm"], check=True)
    done = subprocess.run([*run_by, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("isa", usable(), ids=lambda isa: isa.name)
def test_each_kernel_is_right_with_what_this_processor_has(
    tmp_path: Path, isa: native_library.Isa
) -> None:
    assert checked(tmp_path, "gcc", isa.compiler_flags).count("right") == 35


@pytest.mark.skipif(AVX512.needs - cpu_flags() != set(), reason="there is no AVX-512 here")
def test_each_kernel_is_right_with_avx_512_that_has_no_products_of_bytes(tmp_path: Path) -> None:
    assert checked(tmp_path, "gcc", AVX512.compiler_flags).count("right") == 35


def test_each_kernel_is_right_on_a_64_bit_arm_processor(tmp_path: Path) -> None:
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if not (shutil.which(compiler) and shutil.which(emulator)):
        pytest.skip(f"there is no {compiler} or no {emulator}")
    assert checked(tmp_path, compiler, NEON.compiler_flags, [emulator]).count("right") == 35
