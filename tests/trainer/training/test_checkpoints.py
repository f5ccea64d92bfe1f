import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loragate.trainer.errors import RunFolderError
from loragate.trainer.training.checkpoints import Checkpoints, RunState, Validation


def run_state(*losses: float) -> RunState:
    return RunState("", [Validation(number, loss) for number, loss in enumerate(losses)])


def saver(content: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "weights").write_text(content)

    return save


def write_step(checkpoints: Checkpoints, step: int, run_state: RunState) -> None:
    checkpoints.begin()
    written = checkpoints.partial / f"checkpoint-{step}"
    written.mkdir()
    (written / "weights").write_text(f"{step}")
    checkpoints.commit(step, run_state)


def test_a_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    write_step(checkpoints, 9, run_state(2.0))
    write_step(checkpoints, 10, run_state(2.0))
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest / "weights").read_text() == "10"
    assert RunState.read(latest) == run_state(2.0)
    assert [path.name for path in checkpoints.folder.glob("step-*")] == ["step-000010"]


def test_what_was_not_finished_is_never_gone_on_from(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    write_step(checkpoints, 1, run_state(2.0))
    checkpoints.begin()
    (checkpoints.partial / "checkpoint-2").mkdir()
    assert checkpoints.latest() == checkpoints.folder / "step-000001"


def test_the_earlier_best_stays_until_a_checkpoint_knows_the_new_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.keep_best(0, saver("at first"))
    write_step(checkpoints, 0, run_state(2.0))
    checkpoints.keep_best(1, saver("better"))
    assert checkpoints.best(0).is_dir()
    write_step(checkpoints, 1, run_state(2.0, 1.0))
    assert not checkpoints.best(0).exists()
    assert (checkpoints.best(1) / "weights").read_text() == "better"


def test_a_full_disk_is_told_in_a_sentence_and_what_is_whole_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    write_step(checkpoints, 5, run_state(2.0))

    def save(_folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunFolderError, match=r"No space left.*step-000005 is whole.*--resume"):
        checkpoints.keep_best(6, save)
    assert checkpoints.latest() == checkpoints.folder / "step-000005"


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path: Path, library: str) -> None:
    """A limit on the size of files stands for a disk that is full."""
    script = f"""
import resource, signal, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from loragate.trainer.errors import RunFolderError
from loragate.trainer.training.checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 16}, {resource.RLIM_INFINITY}))
tensor = torch.zeros(1 << 20)
def save(folder):
    if {library == "torch"}:
        torch.save(tensor, folder / "optimizer.pt")
    else:
        save_file({{"weight": tensor}}, folder / "model.safetensors")
try:
    Checkpoints(Path({str(tmp_path)!r})).keep_best(1, save)
except RunFolderError as error:
    print(error)
    sys.exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert ended.returncode == 7, ended.stderr.decode()[-2000:]
    assert b"make room and go on with --resume" in ended.stdout
