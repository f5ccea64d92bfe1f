"""Whole runs of the suite as a user starts them, on a gateway whose engine echoes."""

import subprocess
import sys
from pathlib import Path

from loadtests.records import Run, read_run

ROOT = Path(__file__).parents[3]
SMOKE = Path(__file__).parent / "smoke.toml"
PACE_SECONDS = "0.02"


def echoing(model: Path) -> str:
    return f"{sys.executable} -m support.server.echo_server {{home}} {model} {PACE_SECONDS}"


def load(model: Path, adapter: Path, folder: Path, scenario: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "loadtests", "run", scenario),
        *("--command", echoing(model)),
        *("--like", str(adapter), "--prompt-words", "8,16", "--output-tokens", "16,32"),
        *("--objectives", str(SMOKE), "--out", str(folder), *more),
    ]


def run_to_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        output, errors = process.communicate()
    finally:
        process.terminate()  # also where the test took too long: the run then stops its server
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def read_finished(folder: Path, done: subprocess.CompletedProcess[str]) -> Run:
    assert done.returncode == 0, done.stdout + done.stderr
    return read_run(folder / "run.jsonl")
