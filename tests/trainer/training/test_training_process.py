"""A training in a process of its own: the same result, one way to stop it, and no orphan."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from loragate.trainer.data.example import DataError
from loragate.trainer.errors import TrainingError
from loragate.trainer.pipeline.pipeline import check, train_run
from loragate.trainer.pipeline.training_process import train_apart
from loragate.trainer.run.run import Run
from loragate.trainer.training.train import Interrupted
from support.training.tiny_runs import TinyRuns, loaded
from support.waiting import wait_for

LONG = {"max_steps": 400, "learning_rate": 1e-3, "evaluate_every": 1, "patience": 0}


def begun(runs: TinyRuns, say: Callable[[str], None], **training: object) -> Run:
    run = replace(loaded(runs, runs.run_file(training=training)), say=say)
    check(run, resume=False, overwrite=True)
    return run


def when(sign: str, happen: Callable[[], None]) -> Callable[[str], None]:
    """Something that happens at the first sentence that begins so."""
    pending = [happen]

    def say(sentence: str) -> None:
        if sentence.startswith(sign) and pending:
            pending.pop()()

    return say


def test_a_training_apart_gives_the_same_bytes_and_says_the_same(runs: TinyRuns) -> None:
    said: list[str] = []
    here = train_run(begun(runs, said.append, max_steps=3))
    heard = list(said)
    said.clear()
    run = begun(runs, said.append, max_steps=3)
    apart = train_apart(run)
    assert apart.adapter_digest == here.adapter_digest
    assert said == heard
    assert run.phases.seconds.keys() == {"data", "training"}
    assert run.progress.tasks[-1].finished
    assert multiprocessing.active_children() == []


def test_ctrl_c_reaches_the_training_once_and_it_goes_on_from_there(runs: TinyRuns) -> None:
    run = begun(runs, when("step     2", lambda: os.kill(os.getpid(), signal.SIGINT)), **LONG)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step"):
        train_apart(run)
    assert signal.getsignal(signal.SIGINT) is before
    assert run.folder.is_stopped


def test_a_training_that_the_system_ended_is_told_with_what_is_left_of_it(
    runs: TinyRuns,
) -> None:
    def kill() -> None:
        (child,) = multiprocessing.active_children()
        child.kill()

    run = begun(runs, when("step     2", kill), **LONG)
    with pytest.raises(TrainingError, match=r"ended by SIGKILL.*step-00000\d is whole.*--resume"):
        train_apart(run)


def test_what_is_wrong_in_the_process_is_raised_as_it_would_be_here(runs: TinyRuns) -> None:
    run = begun(runs, lambda _said: None, max_steps=1)
    (runs.splits.path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"not those that data\.json describes") as apart:
        train_apart(run)
    with pytest.raises(DataError, match=re.escape(str(apart.value))):
        train_run(run)


PARENT = """
from pathlib import Path
from rich.progress import Progress
from loragate.adapters.home import Home
from loragate.trainer.pipeline.pipeline import check
from loragate.trainer.pipeline.training_process import train_apart
from loragate.trainer.run.run import Run

file = Path({file!r})
progress = Progress(disable=True)
say = lambda said: print(said, flush=True)
run = Run.load(file, file.read_text(), Home(Path({home!r})), progress, say)
check(run, resume=False, overwrite=True)
train_apart(run)
"""


@pytest.mark.slow
def test_a_training_ends_with_a_parent_that_was_killed(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training=LONG))
    script = PARENT.format(file=str(run.file), home=str(runs.home.root))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert any(line.startswith("step     2") for line in parent.stdout)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert family
        parent.kill()
    assert wait_for(lambda: not any(_lives(each) for each in family), 20)
    assert run.folder.is_stopped


def test_ctrl_z_pauses_the_training_too_and_both_go_on(runs: TinyRuns) -> None:
    watched: list[subprocess.Popen[str]] = []

    def pause() -> None:
        (child,) = multiprocessing.active_children()
        look = f"sed 's/.*) //' /proc/{child.pid}/stat | cut -d ' ' -f 12,13"
        script = f"sleep 0.5; {look}; sleep 1; {look}; kill -CONT {os.getpid()}"
        watched.append(subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True))
        os.kill(os.getpid(), signal.SIGTSTP)

    run = begun(runs, when("step     2", pause), **{**LONG, "max_steps": 12})
    assert train_apart(run).steps == 12
    said, _ = watched[0].communicate()
    before, after = (sum(map(int, line.split())) for line in said.splitlines())
    assert after - before < 10  # hundredths of a second of CPU time, in a second


@pytest.mark.slow
def test_a_training_that_pauses_ends_with_a_parent_that_was_killed(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training={**LONG, "max_steps": 4000}))
    script = PARENT.format(file=str(run.file), home=str(runs.home.root))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, process_group=0
    ) as parent:
        assert parent.stdout is not None
        assert any(line.startswith("step     2") for line in parent.stdout)
        stopped = psutil.Process(parent.pid)
        family = stopped.children(recursive=True)
        os.kill(parent.pid, signal.SIGTSTP)
        assert wait_for(lambda: stopped.status() == psutil.STATUS_STOPPED, 20)
        parent.kill()
    assert wait_for(lambda: not any(_lives(each) for each in family), 20)
    assert run.folder.is_stopped


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_script_without_a_guard_is_not_run_once_more(runs: TinyRuns, tmp_path: Path) -> None:
    own = sys.modules["__main__"]
    counted = tmp_path / "ran"
    script = tmp_path / "script.py"
    script.write_text(f"open({str(counted)!r}, 'a').write('once more')")
    module = type(own)("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module
    try:
        train_apart(begun(runs, lambda _said: None, max_steps=1))
    finally:
        sys.modules["__main__"] = own
    assert not counted.exists()
