"""Does changes to a registry in processes that are killed on the way.

Run as a program it reads one JSON line for each: ``{"url", "store", "change", "folder", "call"}``,
forks, does the change, and kills the fork at that call or return of the change's Python and C
functions, or at its end. It answers ``{"signal", "calls"}``. It has no database open itself when it
forks, which SQLite forbids, and no threads, so that forks are as good as new processes.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore

SUPPORT = AdapterName("acme", "support")


def promote_the_other(registry: Registry, _folder: Path) -> None:
    [target] = registry.snapshot().desired_aliases()
    registry.aliases.set(SUPPORT, "champion", 3 - target.desired.number)


def serve_the_wish(registry: Registry, _folder: Path) -> None:
    [target] = registry.snapshot().desired_aliases()
    registry.aliases.set_serving(SUPPORT, "champion", target.desired.number, "server")


def become_ready(registry: Registry, _folder: Path) -> None:
    [target] = registry.snapshot().desired_aliases()
    registry.aliases.set_ready(target.desired, "server")


def publish(registry: Registry, folder: Path) -> None:
    registry.versions.publish(SUPPORT, folder)


def drain_v2(registry: Registry, _folder: Path) -> None:
    version = registry.snapshot().resolve("acme", "support", "v2")
    registry.states.set(version, AdapterState.DRAINING, "server")


def collect(registry: Registry, _folder: Path) -> None:
    registry.artifacts.collect()


CHANGES = {
    change.__name__: change
    for change in (promote_the_other, serve_the_wish, become_ready, publish, drain_v2, collect)
}


@dataclass(frozen=True)
class Place:
    """Where a registry is that nobody else has open meanwhile."""

    url: str
    store: Path


class Killer:
    """The program, running."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=10)

    def kill(
        self,
        place: Place,
        change: Callable[[Registry, Path], None],
        call: int,
        folder: Path = Path(),
    ) -> int:
        """Returns how many calls and returns there were before it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "url": place.url,
            "store": str(place.store),
            "change": change.__name__,
            "folder": str(folder),
            "call": call,
        }
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["signal"] == signal.SIGKILL
        return answer["calls"]


def _fork(order: dict[str, object]) -> dict[str, int]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _change(order, write)
        finally:  # only an error comes here
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as said:
        calls = said.read()
    return {"signal": os.WTERMSIG(status), "calls": int(calls or 0)}


def _change(order: dict[str, object], told: int) -> None:
    calls = 0

    def die() -> None:
        os.write(told, str(calls).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def count(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == order["call"]:
            die()

    change, folder = CHANGES[str(order["change"])], Path(str(order["folder"]))
    registry = Registry(str(order["url"]), ArtifactStore(Path(str(order["store"]))))
    sys.setprofile(count)
    change(registry, folder)
    sys.setprofile(None)
    die()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)
