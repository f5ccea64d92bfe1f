"""Processor time of the command line, which shares the serving machine's cores: `make bench-cli`.

Each command is a process of its own, as from a terminal, on a registry with some tenants, adapters
and versions. Printed are the medians of the rounds and their spread.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import processor
from bench.adapters import make_adapter
from bench.servers import MODEL, model_path, publish
from loragate.adapters.home import Home

_TENANTS, _VERSIONS = 4, 3
# The goal is for what only asks the registry.
_ASKING = (
    "tenant list",
    "adapter list",
    "adapter show tenant0/adapter",
    "key list tenant0",
    "usage",
)
_CHANGING = ("adapter promote tenant0/adapter v2", "adapter publish tenant0/adapter {folder}")
_OTHERS = ("--version", "--help", "adapter --help")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="of each command (default 9)")
    options = parser.parse_args()
    print(f"{processor.measure(None)}\n")
    print("| command | processor time, s | until it ends, s |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-cli-") as folder:
        home, versions = _furnish(Path(folder))
        environment = os.environ | {"LORAGATE_HOME": str(home.root)}
        for command in (*_OTHERS, *_ASKING, *_CHANGING):
            taken = [
                _run(command.format(folder=versions[number % len(versions)]), environment)
                for number in range(options.rounds + 1)
            ][1:]  # the first one compiles what Python has not seen yet
            used, passed = zip(*taken, strict=True)
            name = command.split(" {")[0]
            print(f"| `{name}` | {_spread(used)} | {_spread(passed)} |", flush=True)


def _furnish(folder: Path) -> tuple[Home, Sequence[Path]]:
    """A home with the base model and published adapters, and folders to publish more from."""
    home = Home(folder / "home").ensure()
    shutil.rmtree(home.models)
    home.models.symlink_to(model_path().parent)
    versions = [
        make_adapter(folder / f"version{number}", home.models / MODEL, number)
        for number in range(_VERSIONS)
    ]
    publish(home, {f"tenant{number}": versions for number in range(_TENANTS)})
    return home, versions


def _run(command: str, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of processor time, and from beginning to end."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "loragate.server.cli.main", *command.split()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, status, usage = os.wait4(process.pid, 0)
    passed = time.perf_counter() - started
    if status:
        assert process.stderr is not None
        raise SystemExit(f"loragate {command}: {process.stderr.read().decode()}")
    return usage.ru_utime + usage.ru_stime, passed


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
