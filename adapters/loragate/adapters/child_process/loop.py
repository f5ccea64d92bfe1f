"""What a child process of `child_process` runs: one job after the other, within bounds.

It reads frames from standard input and writes frames to standard output: JSON behind a header;
whatever else is printed goes nowhere. It ends when its input does, in the midst of a job too, and
so with its parent, however that came to its end. Imports next to nothing, since the
time until a child is ready is somebody's waiting time.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Final, NoReturn

# A frame's header: the length of its JSON in bytes, and whether the sender leaves after it.
HEADER: Final = struct.Struct(">I?")
Job = Callable[[Any], Any]

# Beyond what a job may use: the parent ends it long before, if there still is one.
_SPARE_SECONDS: Final = 5
_STACK_BYTES: Final = 4 * 2**20  # a recursion without end shall end here, and soon


class Refused(Exception):
    """The job cannot be done, for the reason that the message says."""


def serve(prepare: Callable[[Any], Job]) -> NoReturn:
    """Does jobs until the parent closes the pipe.

    `prepare` gets what the parent said at the start, and returns the function that does a job. Its
    memory is not limited; that of the jobs is, beyond what there is after it. What a job raises is
    answered as its refusal.
    """
    frames, answers = _take_pipes()
    setup = json.loads(frames.get())
    os.nice(setup["niceness"])
    try:
        do = prepare(setup["preparation"])
    except Exception as error:  # noqa: BLE001 - the parent has no other way to know of it
        _write(answers, json.dumps({"failed": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    limits = _Limits(setup["seconds"], setup["memory_bytes"])
    _write(answers, json.dumps({"ready": True}))
    while True:
        limits.begin_job()
        answer = _do(do, frames.get())
        is_leaving = limits.is_memory_left_over()
        _write(answers, answer, is_leaving)
        if is_leaving:
            os._exit(0)


class _Limits:
    """The bounds of a job in this process, by the kernel."""

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._seconds = int(seconds) + 1 + _SPARE_SECONDS
        self._begin_bytes = _address_space_bytes()
        self._memory_bytes = memory_bytes
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _lower(resource.RLIMIT_STACK, _STACK_BYTES)
        if self._begin_bytes:
            _lower(resource.RLIMIT_AS, self._begin_bytes + memory_bytes)

    def begin_job(self) -> None:
        """A job that nobody ends any more, its parent being gone, ends by its processor time."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + self._seconds)

    def is_memory_left_over(self) -> bool:
        """Whether the job has left behind so much that the next one would have too little."""
        return _address_space_bytes() - self._begin_bytes > self._memory_bytes // 2


def _do(do: Job, frame: bytes) -> str:
    try:
        return json.dumps({"answer": do(json.loads(frame))})
    except MemoryError:
        pass  # outside, where what the traceback holds is free again
    except Exception as error:  # noqa: BLE001 - jobs are programs of others and raise what they like
        if "bad_alloc" not in str(error):
            return json.dumps({"refused": str(error) if str(error) else type(error).__name__})
    return json.dumps({"out_of_memory": True})


def _take_pipes() -> tuple[queue.SimpleQueue[bytes], BinaryIO]:
    # Signals that are meant for the server reach its process group or its control group; while it
    # drains, it needs its children.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(frames,), name="jobs", daemon=True).start()
    return frames, answers


def _read(frames: queue.SimpleQueue[bytes]) -> None:
    """Reads ahead, so that the end of the pipe is seen while a job is done."""
    pipe = os.fdopen(0, "rb")
    while len(header := pipe.read(HEADER.size)) == HEADER.size:
        length, _ = HEADER.unpack(header)
        body = pipe.read(length)
        if len(body) < length:
            break
        frames.put(body)
    os._exit(0)


def _write(pipe: BinaryIO, text: str, is_leaving: bool = False) -> None:
    body = text.encode()
    view = memoryview(HEADER.pack(len(body), is_leaving) + body)
    while view:
        view = view[pipe.write(view) :]


def _lower(limit: int, value: int) -> None:
    """Sets the soft limit only: the hard one is of the whole session, and may be lower still."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space_bytes() -> int:
    """0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
