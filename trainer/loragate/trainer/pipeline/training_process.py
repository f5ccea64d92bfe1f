"""Trains a run in a process of its own, whose memory goes back to the machine when it ends.

What follows the training needs that memory: on a GPU, the evaluation's server. The process ends
with its parent, however that ends, pauses with it (Ctrl-Z) and goes on with it, and every signal
that is to stop the parent reaches it once.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

import msgspec
import psutil
import torch
from rich.progress import Progress, TaskID

from loragate.adapters.errors import LoragateError
from loragate.adapters.home import Home
from loragate.adapters.settings import SharedSettings
from loragate.trainer.errors import TrainingError
from loragate.trainer.pipeline.pipeline import train_run
from loragate.trainer.run.file import convert_run_file
from loragate.trainer.run.folder import RunFolder, RunResult
from loragate.trainer.run.run import Phases, Run
from loragate.trainer.training.checkpoints import Checkpoints

PRELOADED: Final = "loragate.trainer.pipeline.preloaded"
_STOPS_WITHIN_SECONDS: Final = 2.0  # a parent that was told to; one may not be allowed to
_LOOK_SECONDS: Final = 0.1
_Send = Callable[[tuple[Any, ...]], None]


@dataclass(frozen=True, slots=True)
class _Order:
    """A run, and the surroundings that its process is to have. `settings` are as TOML has them."""

    settings: dict[str, object]
    root: Path
    folder: RunFolder
    home: Home
    file: Path
    text: str
    shared: SharedSettings
    directory: str
    environment: dict[str, str]


def train_apart(run: Run) -> RunResult:
    """As `train_run`, in a process of its own, with the same progress and sentences. The first
    SIGINT or SIGTERM stops it after the step under way, a second one at once.

    Raises what `train_run` raises, and TrainingError where the process was ended from outside.
    """
    order = _Order(
        msgspec.to_builtins(run.settings),
        *(run.root, run.folder, run.home, run.file, run.text, run.shared),
        os.getcwd(),
        dict(os.environ),
    )
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_train, args=(order, sender), name="training")
    with _without_main():
        process.start()
    sender.close()  # ours, so that the pipe ends with the process
    try:
        with _forwarding(process):
            _follow(receiver.recv, run)
            process.join()
    finally:
        receiver.close()
        if process.is_alive():
            process.kill()
            process.join()
    if process.exitcode != 0:
        raise TrainingError(_how_it_ended(process, run.folder))
    return run.folder.result()


def _context() -> ForkServerContext | SpawnContext:
    """A process that has begun to use CUDA cannot be forked, and importing libraries may begin it;
    without CUDA, one process imports them and every training is forked from it.
    """
    if torch.version.cuda is not None:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _follow(receive: Callable[[], tuple[Any, ...]], run: Run) -> None:
    """Shows what the process sends, until it has ended. Raises what ended it."""
    tasks: dict[TaskID, TaskID] = {}
    while True:
        try:
            kind, *said = receive()
        except EOFError:
            return
        match kind:
            case "say":
                run.say(*said)
            case "phase":
                run.phases.end(*said)
            case "add":
                task, description, total, fields = said
                tasks[task] = run.progress.add_task(description, total=total, **fields)
            case "update":
                task, changes = said
                run.progress.update(tasks[task], **changes)
            case "remove":
                run.progress.remove_task(tasks.pop(said[0]))
            case "failed":
                raise _error_of(*said)


def _error_of(pickled: bytes | None, written: str) -> BaseException:
    if pickled is None:
        return TrainingError(f"the training process failed:\n{written}")
    error: BaseException = pickle.loads(pickled)
    if not isinstance(error, LoragateError | KeyboardInterrupt):
        error.add_note(f"in the training process:\n{written}")
    return error


def _how_it_ended(process: BaseProcess, folder: RunFolder) -> str:
    code = process.exitcode or 0
    how = f"with {code}" if code > 0 else f"by {signal.Signals(-code).name}"
    why = ""
    if code == -signal.SIGKILL:
        why = (
            ", most likely by the system since its memory ran out; lower [training] batch_size "
            "(and raise gradient_accumulation) or set gradient_checkpointing = true"
        )
    latest = Checkpoints(folder.checkpoints).latest()
    kept = f"{latest.name} is whole: go on with --resume" if latest else "nothing was kept of it"
    return f"the training process was ended {how}{why}; {kept}"


@contextmanager
def _forwarding(process: BaseProcess) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM are the process's, and SIGTSTP, as of Ctrl-Z, pauses
    both. Python allows that in the main thread only; in another they stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)

    def pause(number: int, frame: FrameType | None) -> None:
        # The terminal's Ctrl-Z goes to this group and not to the process's own.
        forward(number, frame)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns once this process goes on
        signal.signal(number, pause)

    handlers = {signal.SIGINT: forward, signal.SIGTERM: forward, signal.SIGTSTP: pause}
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def _without_main() -> Iterator[None]:
    """Within the block, a process that starts imports nothing of the program that starts it: a
    script would run once more.
    """
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def _train(order: _Order, sender: Connection) -> None:
    """What the process does."""
    # Ctrl-C goes to all of a terminal's group: alone in one, this process gets it from its parent,
    # and once.
    os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTSTP, _pause_with_parent)
    os.chdir(order.directory)
    os.environ.clear()
    os.environ.update(order.environment)
    lock = threading.Lock()

    def send(message: tuple[Any, ...]) -> None:
        with lock:  # progress is sent from more than one thread
            sender.send(message)

    run = Run(
        convert_run_file(order.settings),
        *(order.root, order.folder, order.home, _SentProgress(send)),
        say=lambda sentence: send(("say", sentence)),
        file=order.file,
        text=order.text,
        shared=order.shared,
        phases=_SentPhases(send),
    )
    try:
        train_run(run)
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        send(("failed", _pickled(error), traceback.format_exc()))
    sender.close()


def _pickled(error: BaseException) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # noqa: BLE001 - any class may refuse either, in any way
        return None
    return pickled


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # checkpoints are whole or absent, so this may come at any moment


def _pause_with_parent(_number: int, _frame: FrameType | None) -> None:
    """Returns when the parent, which was to be stopped when it sent the signal, goes on.

    Only waits, so that the thread which ends this process with its parent still can.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    parent_state = psutil.Process(parent.pid)
    was_stopped, began = False, time.monotonic()
    while was_stopped or time.monotonic() - began < _STOPS_WITHIN_SECONDS:
        time.sleep(_LOOK_SECONDS)
        is_stopped = parent_state.status() == psutil.STATUS_STOPPED
        if was_stopped and not is_stopped:
            return
        was_stopped = is_stopped


class _SentPhases(Phases):
    def __init__(self, send: _Send) -> None:
        super().__init__()
        self._send = send

    def end(self, name: str) -> None:
        self._send(("phase", name))


class _SentProgress(Progress):
    """Shows nothing here; the parent shows it."""

    def __init__(self, send: _Send) -> None:
        super().__init__(disable=True)
        self._send = send

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        task = super().add_task(description, start, total, completed, visible, **fields)
        self._send(("add", task, description, total, fields))
        return task

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._send(("update", task_id, changes))

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._send(("update", task_id, {"advance": advance}))

    def remove_task(self, task_id: TaskID) -> None:
        super().remove_task(task_id)
        self._send(("remove", task_id))
