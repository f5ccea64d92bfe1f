"""A run's checkpoints, and its best weights so far; each is complete or absent.

`step-<n>` is what transformers needs to resume after step n, with the run's state. `best-<n>` has
the weights alone. What is being written lies in `.partial` and gets its name by one rename; only
then is what it replaces removed, so there is always one to resume from.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError

from loragate.trainer.errors import RunFolderError
from loragate.trainer.run.folder import write_whole

FILE = "run_state.json"


class Validation(msgspec.Struct, frozen=True):
    """The loss over all validation rows, in nats a supervised token, after `step` steps."""

    step: int
    loss: float


class RunState(msgspec.Struct):
    """What a checkpoint keeps beside transformers' own state. `data_digest` is that of the splits.
    `seconds` and `training_seconds`, which has steps alone, are sums over all starts of the run.
    """

    data_digest: str
    validations: list[Validation] = []
    seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def best(self) -> Validation:
        """The validation with the lowest loss; of equal ones the earliest."""
        return min(self.validations, key=lambda validation: (validation.loss, validation.step))

    @property
    def since_best(self) -> int:
        """How many validations came after the best."""
        return len(self.validations) - 1 - self.validations.index(self.best)

    def has_stopped_early(self, patience: int) -> bool:
        """Whether the last `patience` validations were no better than the best; never for 0."""
        return bool(patience) and self.since_best >= patience

    def write(self, folder: Path) -> None:
        write_whole(folder / FILE, msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> "RunState":
        return msgspec.json.decode((folder / FILE).read_bytes(), type=cls)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Under one folder, written by one process. Steps are optimizer steps, from 1."""

    folder: Path

    @property
    def partial(self) -> Path:
        """Where transformers writes; it adds a folder of its own in it."""
        return self.folder / ".partial"

    def latest(self) -> Path | None:
        """The newest checkpoint to resume from."""
        steps = [step_of(path) for path in self.folder.glob("step-*")]
        return self._step(max(steps)) if steps else None

    def begin(self) -> None:
        """Makes `partial` empty, for the next checkpoint."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def commit(self, step: int, run_state: RunState) -> None:
        """Makes what was written into `partial` the checkpoint of `step`, and removes older ones.
        Raises RunFolderError.
        """
        with self.explaining():
            (written,) = self.partial.iterdir()
            run_state.write(written)
            self._name(written, self._step(step))
        # Only now that the new one has its name: a run that is killed here can be resumed from it.
        for path in self.folder.glob("step-*"):
            if step_of(path) != step:
                shutil.rmtree(path)
        for path in self.folder.glob("best-*"):
            if step_of(path) != run_state.best.step:
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
        """Turns what libraries raise on a full or read-only disk into a RunFolderError."""
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
        # On the disk before the rename, or after a power cut the name could stand for empty files.
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
    """PyTorch and safetensors have no class or number for it, so their messages are searched."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    words = str(error)
    return isinstance(error, SafetensorError) or any(
        sign in words for sign in ("PytorchStreamWriter", "file write failed", "unexpected pos")
    )
