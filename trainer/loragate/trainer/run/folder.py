"""A run's folder: all that a run makes, under fixed names, each file complete or absent."""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import msgspec

from loragate.trainer.errors import RunFolderError
from loragate.trainer.run.file import (
    RunFile,
    read_run_file,
    with_absolute_paths,
    with_relative_paths,
)

Fit = Literal["underfitted", "well fitted", "overfitted", "unknown"]
Kind = Literal["run", "sweep"]
_SHOWN = 3  # names in a message
# What a run makes, in its folder and in those folders of it where people may put files too. A test
# has a whole run make it all.
_MADE = frozenset(
    {"run.toml", "resolved.toml", "data", "log.jsonl", "checkpoints", "adapter", "loss.png"}
    | {"tensorboard", "result.json", "evaluation", "estimate.json", "sweep.json", ".loragate-run"}
    | {"inputs.json", "published.json", "learning-curve.json", "learning-curve.png"}
    | {"decision.html"}
)
# What `loragate train --estimate` leaves for the training, if it is of the same run.
_KEPT = frozenset(
    {".loragate-run", "data", "inputs.json", "estimate.json", "decision.html", "run.toml"}
)
_INSIDE = {
    "data": frozenset(
        {"train.jsonl", "validation.jsonl", "test.jsonl", "data.json", "report.html", "drops.jsonl"}
        | {"changes.jsonl"}
    ),
    "evaluation": frozenset({"evaluation.json", "report.html", "rubric.csv", "verdicts.jsonl"}),
}


class FitDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """How the validation loss developed, in nats a token. `sentence` says it to people."""

    fit: Fit
    sentence: str
    best_step: int
    best_validation_loss: float
    first_validation_loss: float
    last_validation_loss: float


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a training, and what it was made from.

    Digests are "sha256:<hex>" or plain hex as their makers write them. `training_seconds` is time
    in steps, validation not counted; `seconds` is all of the training, from its first start to its
    end, without the time that it lay interrupted. Tokens do not count padding.
    """

    method: str
    diagnosis: FitDiagnosis
    metrics: dict[str, float]
    steps: int
    epochs: float
    seconds: float
    training_seconds: float
    training_tokens: int
    supervised_tokens: int
    peak_memory_bytes: int
    seed: int
    data_digest: str
    base_model: str
    base_model_digest: str
    adapter_digest: str
    continued_from: str
    chat_template_hash: str
    tokenizer_hash: str
    # Tokens that end learnt turns, at which an engine does not stop by the model's own settings.
    stop_token_ids: tuple[int, ...] = ()
    packages: dict[str, str]
    machine: str


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths under one root, and reading and writing what they hold."""

    root: Path

    @property
    def run_file(self) -> Path:
        """The run file as it was given, byte by byte."""
        return self.root / "run.toml"

    @property
    def resolved_file(self) -> Path:
        """The same with every "auto" replaced by its value, and paths relative to this folder."""
        return self.root / "resolved.toml"

    @property
    def inputs_file(self) -> Path:
        """Digests of what the run was begun with; see `Inputs`."""
        return self.root / "inputs.json"

    @property
    def published_file(self) -> Path:
        """Which version the run was published as."""
        return self.root / "published.json"

    @property
    def data(self) -> Path:
        """The splits that the run made of raw data; absent where it was given splits."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """JSON lines: {"step", "loss", …} of training and {"step", "validation_loss"}."""
        return self.root / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The best adapter in PEFT's form; for the method `full`, the whole model."""
        return self.root / "adapter"

    @property
    def curve(self) -> Path:
        return self.root / "loss.png"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def result_file(self) -> Path:
        """Written last: a run that has it is complete."""
        return self.root / "result.json"

    @property
    def evaluation(self) -> Path:
        """What evaluation makes: its report and figures."""
        return self.root / "evaluation"

    @property
    def mark(self) -> Path:
        """A file that marks the folder as one of a run, or of a sweep: only then may `clear` remove
        what runs make.
        """
        return self.root / ".loragate-run"

    @property
    def is_complete(self) -> bool:
        return self.result_file.is_file()

    @property
    def is_stopped(self) -> bool:
        """Whether a checkpoint is here to go on from."""
        return not self.is_complete and any(self.checkpoints.glob("step-*"))

    def claim(self, kind: Kind = "run") -> None:
        """Makes the folder the run's own. Raises RunFolderError where it holds anything else."""
        if self._is_claimed():
            return
        if entries := sorted(path.name for path in self._entries()):
            raise RunFolderError(
                f"{self.root} holds {_named(entries)}, which no run made; give the run a folder of "
                "its own ('folder' in the run file)"
            )
        write_whole(self.mark, f"{kind}\n".encode())

    def clear(self) -> None:
        """Removes what an earlier run made here, and nothing else. Raises RunFolderError, before
        anything is removed, where there is anything else.
        """
        if not any(self._entries()):
            return
        if not self._is_claimed():
            raise RunFolderError(
                f"{self.root} was made by no run, so nothing in it is removed; give the run a "
                "folder of its own ('folder' in the run file)"
            )
        if others := sorted(str(path.relative_to(self.root)) for path in self.others()):
            raise RunFolderError(
                f"{self.root} holds {_named(others)}, which no run made; move that elsewhere, or "
                "give the run another folder"
            )
        # The mark stays, so that a folder that was left half empty can be cleared again.
        self._remove(path for path in self._entries() if path != self.mark)

    def forget_attempt(self) -> None:
        """Removes what an attempt left that ended before its first checkpoint, but for splits and
        an estimate. Raises RunFolderError.
        """
        self._forget(_MADE - _KEPT)

    def forget_data(self) -> None:
        """Removes the splits that were made here, as `forget_attempt` does."""
        self._forget({self.data.name})

    def forget_estimate(self) -> None:
        """Removes the estimate, as `forget_attempt` does."""
        self._forget({"estimate.json", "decision.html"})

    def _forget(self, names: Collection[str]) -> None:
        """Removes these. Raises RunFolderError, before anything is removed, where somebody put
        anything else into one of them.
        """
        others = [
            str(path.relative_to(self.root))
            for path in self.others()
            if path.relative_to(self.root).parts[0] in names
        ]
        if others:
            raise RunFolderError(
                f"{self.root} holds {_named(sorted(others))}, which no run made; move that "
                "elsewhere, or give the run another folder"
            )
        self._remove(path for path in self._entries() if path.name in names)

    def _remove(self, paths: Iterable[Path]) -> None:
        try:
            for path in list(paths):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise RunFolderError(
                f"{error.filename} cannot be removed: {error.strerror}; remove {self.root} by hand"
            ) from error

    def _is_claimed(self) -> bool:
        # The two files are those of runs from before there was a mark.
        return any(path.is_file() for path in (self.mark, self.resolved_file, self.result_file))

    def _entries(self) -> Iterator[Path]:
        if self.root.is_dir():
            yield from self.root.iterdir()

    def others(self) -> Iterator[Path]:
        """Paths in the folder that no run makes."""
        for path in self._entries():
            if path.name in _INSIDE and path.is_dir() and not path.is_symlink():
                yield from (
                    inner for inner in path.iterdir() if inner.name not in _INSIDE[path.name]
                )
            elif path.name in _MADE:
                continue
            elif self._is_sweep() and path.is_dir() and RunFolder(path)._is_claimed():
                yield from RunFolder(path).others()
            else:
                yield path

    def _is_sweep(self) -> bool:
        return self.mark.is_file() and self.mark.read_text("utf-8").strip() == "sweep"

    def resolved(self) -> RunFile:
        """The settings with every "auto" replaced, and with absolute paths. Raises RunFileError
        before training has begun.
        """
        return with_absolute_paths(read_run_file(self.resolved_file), self.root)

    def write_resolved(self, run: RunFile) -> None:
        """Writes settings with absolute paths. Raises RunFolderError."""
        text = with_relative_paths(run, self.root).to_toml()
        write_whole(self.resolved_file, text.encode())

    def result(self) -> RunResult:
        """The result. Raises RunFolderError where the run is not complete."""
        try:
            read = msgspec.json.decode(self.result_file.read_bytes(), type=dict[str, object])
            metrics = cast(dict[str, object], read.get("metrics", {}))
            # JSON has no word for NaN, which earlier versions wrote where there was no figure.
            read["metrics"] = {key: each for key, each in metrics.items() if each is not None}
            return msgspec.convert(read, RunResult)
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.root} holds no complete run; train it, or go on with "
                "`loragate train RUN.toml --resume`"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise RunFolderError(f"{self.result_file} cannot be read: {error}") from None

    def steps(self) -> Iterator[Mapping[str, float]]:
        """The lines of the log. Raises RunFolderError."""
        try:
            yield from msgspec.json.Decoder(dict[str, float]).decode_lines(self.log.read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            raise RunFolderError(f"{self.log} cannot be read: {error}") from None

    def write_result(self, result: RunResult) -> None:
        """Writes the result, after which the run is complete. Raises RunFolderError."""
        encoded = msgspec.json.format(msgspec.json.encode(result), indent=2)
        write_whole(self.result_file, encoded + b"\n")


def _named(names: Sequence[str]) -> str:
    """The first names of some, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is complete or absent, after a crash too. Raises RunFolderError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave an empty file
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"{path} cannot be written: {error.strerror}; make room") from error
