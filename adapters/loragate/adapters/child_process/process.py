"""Processes for work whose cost others decide: templates, grammars.

Such work cannot be bounded in a thread: it holds the interpreter's lock, allocates without end, or
crashes. So it is done in a child process, which is killed and replaced where it takes too long or
too much. The children know nothing of this process: they get no secrets of its environment, none
of its open files, and answer in JSON. What they run is `loop.serve`.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import psutil

from loragate.adapters.child_process.loop import HEADER
from loragate.adapters.errors import LoragateError

_START_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.02
_MOST_ANSWER_BYTES: Final = 64 * 2**20
# No keys are among these.
_VARIABLES: Final = (
    "PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR",
    "LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "TZ",
)  # fmt: skip
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


class ChildTooSlow(Exception):
    """The job has used up its time, or nothing came back for several times as long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class ChildOutOfMemory(Exception):
    """The job needs more memory than it may have."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__(memory_bytes)
        self.memory_bytes = memory_bytes


class ChildDied(Exception):
    """The process came to its end in the midst of the job: it crashed, or somebody killed it."""


class ChildRefused(Exception):
    """The job cannot be done; the message is the child's own reason."""


class ChildUnavailable(LoragateError):
    """The process cannot be started, or its pool is closed: no fault of the job."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """Of one job: processor seconds, and bytes beyond what the child has before its first.

    `patience` is how many times `seconds` may go by on the clock, on a machine with much else to
    do. A child with `niceness` yields the processor to whatever has less of it.
    """

    seconds: float
    memory_bytes: int
    patience: float = 5.0
    niceness: int = 0


class ChildProcess:
    """One child, started with its first job and again after each that had to be killed.

    It does one job at a time. `close` may be called from any thread, in the midst of a job too.
    """

    def __init__(self, module: str, limits: ChildLimits, preparation: object = None) -> None:
        """`module` is run as a program; `preparation` is what its `prepare` gets."""
        self._module = module
        self._limits = limits
        self._preparation = preparation
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def do(self, job: object) -> Any:
        """What the child answers. Blocks for as long as the limits allow, and while it starts.

        Raises ChildTooSlow, ChildOutOfMemory, ChildDied, ChildRefused or ChildUnavailable.
        """
        body = json.dumps(job).encode()
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None
            frame = self._exchange(self._process, body)
        if "refused" in frame:
            raise ChildRefused(str(frame["refused"]))
        if "answer" not in frame:
            raise ChildOutOfMemory(self._limits.memory_bytes)
        return frame["answer"]

    def close(self) -> None:
        """Kills the child; no other is started. Whoever waits for an answer gets ChildDied."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _exchange(self, process: subprocess.Popen[bytes], body: bytes) -> dict[str, Any]:
        is_usable = False
        try:
            _send(process, body)
            frame, is_leaving = _receive(process, self._limits)
            is_usable = not is_leaving
        except EOFError:
            raise ChildDied(f"{self._module} ended by itself") from None
        finally:
            if not is_usable:
                self._end()
        return frame

    def _start(self) -> None:
        self._end()
        if self._is_closed:
            raise ChildUnavailable(f"{self._module} has been closed")
        known = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries warn of is about others' input
            env=known | _ONE_THREAD,
        )
        if self._is_closed:  # since this was asked, by a thread that saw no process to kill
            process.kill()
        limits = self._limits
        setup = {
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_bytes,
            "niceness": limits.niceness,
            "preparation": self._preparation,
        }
        try:
            _send(process, json.dumps(setup).encode())
            frame, _ = _receive(process, ChildLimits(_START_SECONDS, 0, patience=1.0))
        except (EOFError, ChildTooSlow) as error:
            self._end()
            raise ChildUnavailable(f"{self._module} does not start: {error}") from error
        except BaseException:
            self._end()
            raise
        if "ready" not in frame:
            self._end()
            raise ChildUnavailable(f"{self._module} does not start: {frame.get('failed')}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was still to be written has nobody to read it
                pipe.close()


class ChildPool:
    """Some children of one kind; who asks gets a free one, warm ones first, or waits for one."""

    def __init__(
        self, module: str, limits: ChildLimits, size: int, preparation: object = None
    ) -> None:
        self._children = [ChildProcess(module, limits, preparation) for _ in range(size)]
        self._free: queue.LifoQueue[ChildProcess] = queue.LifoQueue()
        for child in self._children:
            self._free.put(child)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the children that run."""
        return tuple(child.pid for child in self._children if child.pid is not None)

    def do(self, job: object) -> Any:
        """As `ChildProcess.do`, by whichever is free.

        A child that dies may have been killed by anybody, for whatever reason; one that dies over
        the same job again dies of it.
        """
        with self._acquire() as child:
            try:
                return child.do(job)
            except ChildDied:
                return child.do(job)

    def close(self) -> None:
        for child in self._children:
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _acquire(self) -> Iterator[ChildProcess]:
        child = self._free.get()
        try:
            yield child
        finally:
            self._free.put(child)


def _send(process: subprocess.Popen[bytes], body: bytes) -> None:
    """Raises EOFError where nobody reads any more. The child reads ahead, so this is soon over."""
    assert process.stdin is not None
    try:
        process.stdin.write(HEADER.pack(len(body), False) + body)
        process.stdin.flush()
    except OSError as error:
        raise EOFError(str(error)) from error


def _receive(process: subprocess.Popen[bytes], limits: ChildLimits) -> tuple[dict[str, Any], bool]:
    """The child's next frame, and whether it leaves after it.

    Raises EOFError where it has ended, ChildTooSlow where it is late.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    deadline = _Deadline(process.pid, limits)
    received = bytearray()
    wanted, is_leaving = HEADER.size, False
    poll = select.poll()  # select has no place for a descriptor above 1023
    poll.register(pipe, select.POLLIN)
    while len(received) < wanted:
        if not poll.poll(deadline.look_again_seconds() * 1000):
            continue
        block = os.read(pipe, 2**20)
        if not block:
            raise EOFError("it has ended")
        received += block
        if wanted == HEADER.size and len(received) >= wanted:
            length, is_leaving = HEADER.unpack_from(received)
            if length > _MOST_ANSWER_BYTES:
                raise EOFError("its answer is too long")
            wanted += length
    frame = json.loads(bytes(received[HEADER.size :]))
    if not isinstance(frame, dict):
        raise EOFError("its answer makes no sense")
    return frame, is_leaving


class _Deadline:
    """When a child's answer is due: by its own processor time, and in the end by the clock."""

    def __init__(self, pid: int, limits: ChildLimits) -> None:
        self._process = psutil.Process(pid)  # ours, not waited for yet, so the pid is no other's
        self._limits = limits
        self._used = 0.0
        self._used = self._cpu_seconds()
        self._began = time.monotonic()

    def look_again_seconds(self) -> float:
        """How long an answer may be waited for now. Raises ChildTooSlow where it is too late."""
        seconds = self._limits.seconds
        passed = time.monotonic() - self._began
        if passed < seconds:  # it cannot have used more than has passed
            return seconds - passed + _LOOK_SECONDS
        left = seconds - (self._cpu_seconds() - self._used)
        if left <= 0 or passed > seconds * self._limits.patience:
            raise ChildTooSlow(seconds)
        return max(left, _LOOK_SECONDS)

    def _cpu_seconds(self) -> float:
        try:
            times = self._process.cpu_times()
        except psutil.Error:  # it has ended, which its pipe says as well
            return self._used
        return times.user + times.system
