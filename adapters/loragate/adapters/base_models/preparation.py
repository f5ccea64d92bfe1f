"""The base model on disk: made or found, digested, and noted in a receipt.

`prepare` turns a source into a `BaseModel`; `load` reads what an earlier `prepare` noted. The
default model is made inside the models directory. A local directory and a hub's snapshot are used
where they are, and the models directory holds their receipt only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.adapters.base_models.files import digest, fingerprint, require_model
from loragate.adapters.base_models.sources import fetch_default_model, fetch_from_hub
from loragate.adapters.errors import BaseModelError

if TYPE_CHECKING:  # commands that show none would wait for it
    from rich.progress import Progress

DEFAULT_MODEL = "smollm2-135m-instruct"
RECEIPT = "loragate-model.json"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that is ready to serve.

    `path` holds its config.json, safetensors and tokenizer files. `digest` ("sha256:<hex>") is
    over these files: equal digests are equal models.
    """

    name: str
    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class _Receipt:
    name: str
    source: str
    digest: str
    path: str  # "." for a model that prepare made, else where the model is
    fingerprint: str  # "" for a model that prepare made


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    folder: str
    # Gets an empty folder that it may fill; returns the directory that holds the model.
    fetch: Callable[[Path, Progress], Path]


def prepare(source: str, models_dir: Path, progress: Progress) -> BaseModel:
    """Make or find the base model of `source`; return at once if that was done before.

    `source` is `DEFAULT_MODEL`, a local directory, or a hub id `org/name`. The caller starts and
    stops `progress`; each part of the work adds a task to it, counted in bytes (download, digest)
    or in steps (conversion). A model appears under `models_dir` whole or not at all: an
    interrupted run leaves at most a hidden folder, which the next run removes, and of two runs at
    once the second waits for the first. Raises `BaseModelError`.
    """
    try:
        return _prepare(source, models_dir, progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BaseModelError(
                f"the disk of {models_dir} filled up while preparing {source!r}; make room or "
                "point LORAGATE_HOME at another disk, then run this again"
            ) from error
        raise BaseModelError(f"could not prepare base model {source!r}: {error}") from error


def load(path: Path) -> BaseModel:
    """Return the base model whose receipt lies in the folder `path`.

    Raises `BaseModelError` if there is no sound receipt or the model has changed since.
    """
    receipt = _read_receipt(path)
    model_path = path / receipt.path
    if not (model_path / "config.json").is_file():
        raise BaseModelError(
            f"base model {receipt.name!r} is no longer in {model_path}; remove {path} and run "
            f"`loragate model prepare --model {receipt.source}`"
        )
    if not _is_current(receipt):
        raise BaseModelError(
            f"base model {receipt.name!r} in {model_path} has changed since it was prepared; run "
            f"`loragate model prepare --model {receipt.source}`"
        )
    return BaseModel(name=receipt.name, path=model_path, digest=receipt.digest)


def find(source: str, models_dir: Path) -> BaseModel:
    """Return what `prepare` made of `source` earlier, and do no work.

    Raises `BaseModelError` as `load` does, and for a source that can be none.
    """
    if (place := Path(source).expanduser().resolve() / RECEIPT).is_file():
        return load(place.parent)
    return load(models_dir / _locate(source).folder)


def _prepare(source: str, models_dir: Path, progress: Progress) -> BaseModel:
    if (place := Path(source).expanduser().resolve() / RECEIPT).is_file():
        return load(place.parent)
    origin = _locate(source)
    target = models_dir / origin.folder
    models_dir.mkdir(parents=True, exist_ok=True)
    with _locked(models_dir / f".{origin.folder}.lock", progress):
        if target.exists():
            if _is_current(_read_receipt(target)):
                return load(target)
            shutil.rmtree(target)  # a receipt only: the model is elsewhere
        with _partial(target) as partial:
            path = origin.fetch(partial, progress)
            _write_receipt(partial, source, origin.name, path, progress)
            _flush(partial)
            partial.rename(target)
        return load(target)


def _locate(source: str) -> _Source:
    if source == DEFAULT_MODEL:
        return _Source(DEFAULT_MODEL, DEFAULT_MODEL, fetch_default_model)
    directory = Path(source).expanduser().resolve()
    if directory.is_dir():
        # Two directories may share a name, not a path.
        suffix = hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]
        folder = f"{directory.name}-{suffix}"
        return _Source(directory.name, folder, lambda _partial, _progress: directory)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source, re.ASCII) and not directory.exists():
        organisation, name = source.split("/")
        folder = f"{organisation}--{name}"
        return _Source(name, folder, lambda _partial, progress: fetch_from_hub(source, progress))
    problem = "is a file" if directory.exists() else "does not exist"
    raise BaseModelError(
        f"base model {source!r} {problem}; give {DEFAULT_MODEL!r}, a directory that holds "
        "config.json and *.safetensors, or a hub id of the form org/name"
    )


@contextmanager
def _locked(lock_path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of one model; the system gives it back when the process ends, however."""
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            task = progress.add_task("Wait for another run on the same model", total=None)
            fcntl.flock(lock, fcntl.LOCK_EX)
            progress.remove_task(task)
        yield


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, and remove it unless it was renamed.

    The caller holds the lock, so every other partial folder was left by a process that died.
    """
    prefix = f".{target.name}.partial-"
    for entry in target.parent.iterdir():
        if entry.name.startswith(prefix):
            shutil.rmtree(entry, ignore_errors=True)
    partial = target.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_receipt(
    partial: Path, source: str, name: str, model_path: Path, progress: Progress
) -> None:
    require_model(model_path)
    is_made = model_path == partial
    receipt = _Receipt(
        name=name,
        source=source,
        digest=digest(model_path, progress),
        path="." if is_made else str(model_path),
        fingerprint="" if is_made else fingerprint(model_path),
    )
    (partial / RECEIPT).write_text(json.dumps(asdict(receipt), indent=2) + "\n")


def _read_receipt(folder: Path) -> _Receipt:
    remedy = f"move {folder} away and run `loragate model prepare` again"
    try:
        fields = json.loads((folder / RECEIPT).read_bytes())
        receipt = _Receipt(**fields)
    except (FileNotFoundError, NotADirectoryError):
        problem = "has no receipt" if folder.exists() else "does not exist"
        raise BaseModelError(
            f"{folder} {problem}, so no base model is prepared there; "
            + (remedy if folder.exists() else "run `loragate model prepare`")
        ) from None
    except (ValueError, TypeError) as error:
        raise BaseModelError(f"the receipt in {folder} is damaged ({error}); {remedy}") from error
    return receipt


def _is_current(receipt: _Receipt) -> bool:
    return not receipt.fingerprint or receipt.fingerprint == fingerprint(Path(receipt.path))


def _flush(folder: Path) -> None:
    """Have the files on the disk before the folder gets its name: a power cut is a crash too."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
