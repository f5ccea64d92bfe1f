"""A run's checkpoints: to go on from, and the best weights so far; each whole or absent.

`step-<n>` is what transformers needs to go on after step n, with the journal. `best-<n>` is the
weights alone. What is being written lies in `.partial` and gets its name with one rename; only then
what it replaces is removed, so there is always one to go on from.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from loragate.trainer.errors import RunFolderError
from loragate.trainer.training.journal import Journal


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Under one folder, written by one process. Steps are optimizer steps, from 1."""

    folder: Path

    @property
    def partial(self) -> Path:
        """Where transformers writes; it adds a folder of its own in it."""
        return self.folder / ".partial"

    def latest(self) -> Path | None:
        """The newest checkpoint to go on from."""
        steps = [step_of(path) for path in self.folder.glob("step-*")]
        return self._step(max(steps)) if steps else None

    def begin(self) -> None:
        """Makes `partial` empty, for the next checkpoint."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def commit(self, step: int, journal: Journal) -> None:
        """Names what `begin` began. Raises RunFolderError."""
        with self.explaining():
            (written,) = self.partial.iterdir()
            journal.write(written)
            self._name(written, self._step(step))
        for path in self.folder.glob("step-*"):
            if step_of(path) != step:
                shutil.rmtree(path)
        for path in self.folder.glob("best-*"):
            if step_of(path) != journal.best.step:
                shutil.rmtree(path)

    def keep_best(self, step: int, save: Callable[[Path], None]) -> None:
        """Has `save` write the weights of `step` into a folder. Raises RunFolderError.

        The earlier best stays until the next checkpoint, from which a run could begin again before
        this step.
        """
        partial = self.folder / ".best"
        shutil.rmtree(partial, ignore_errors=True)
        with self.explaining():
            partial.mkdir(parents=True)
            save(partial)
            self._name(partial, self.best(step))

    def best(self, step: int) -> Path:
        """Where the weights of that step are, if they were kept as the best."""
        return self.folder / f"best-{step:06d}"

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turns what libraries raise on a disk that is full into one sentence."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if not _is_about_disk(error):
                raise
            kept = self.latest()
            raise RunFolderError(
                f"the run cannot write to {self.folder.parent} any more ({error}); "
                + (f"{kept.name} is whole: " if kept else "")
                + "make room and go on with --resume"
            ) from error

    def clear(self) -> None:
        """Removes them all: the run has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _step(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _name(self, written: Path, name: Path) -> None:
        for file in written.rglob("*"):
            if file.is_file():
                _flush(file)
        shutil.rmtree(name, ignore_errors=True)
        written.rename(name)
        _flush(self.folder)


def step_of(checkpoint: Path) -> int:
    """After which step it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_about_disk(error: Exception) -> bool:
    """PyTorch and safetensors say it in words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    words = str(error)
    return isinstance(error, SafetensorError) or any(
        sign in words for sign in ("PytorchStreamWriter", "file write failed", "unexpected pos")
    )
