"""Makes of what any trainer has written a folder that can be published, and says what was done.

An adapter that can be served as it is stays as it is, byte for byte. Others are converted in a
process of their own, which is limited in time and memory, and are checked like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from loragate.adapters.child_process.process import (
    ChildDied,
    ChildLimits,
    ChildOutOfMemory,
    ChildProcess,
    ChildRefused,
    ChildTooSlow,
)
from loragate.adapters.errors import BaseModelError, InvalidAdapter
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.beside import TEMPLATE, is_other_base, named_base
from loragate.adapters.format.files import MANIFEST, inspect
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.importing.source import LeftOut, Source, find_source
from loragate.adapters.temporary_folders import temporary_folder

Convert = Callable[[dict[str, Any]], dict[str, Any]]
_PROGRAM: Final = "loragate.adapters.importing.program"
_SECONDS: Final = 600.0
# The numbers as read, as float32, and as written; and what the libraries need by themselves.
_TIMES_ITS_SIZE: Final = 8
_LEAST_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class RepairDone:
    """What was changed, and why the answers stay the same."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A folder that passed the check. It is the given one where nothing had to be changed."""

    folder: Path
    layout: str
    repairs: tuple[RepairDone, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...] = ()


_RENAMED: Final = RepairDone(
    "tensors renamed as PEFT's save_pretrained writes them", "a name is no number"
)


class Importer:
    """Imports for one base model and engine, as far as they are known.

    Without `profile` modules cannot be looked up in the base model, so that only what needs no
    look is repaired. `model` is the base model's folder.
    """

    def __init__(
        self,
        profile: BaseProfile | None,
        model: Path | None,
        max_rank: int | None,
        do: Convert | None = None,
    ) -> None:
        """`do` is `program.convert`, by default in a child process."""
        self._do = do or _convert_in_child
        self._profile = profile
        self._model = model
        self._check = PublishCheck(profile, max_rank)

    @contextmanager
    def imported(self, path: Path) -> Iterator[Imported]:
        """What `path` is as a folder to publish, for the block; what was made is removed after it.

        Raises InvalidAdapter, whose message says what to do, and StoreError where this machine
        cannot tell.
        """
        source = find_source(path)
        warnings = tuple(self._warnings(source))
        problem = self._problem_as_it_is(source)
        if problem is None:
            yield Imported(source.path, source.layout, (), source.left_out, warnings)
            return
        with temporary_folder("import") as out:
            repairs = self._convert(source, out)
            self._check.check(inspect(out))
            if not repairs:
                repairs = (_RENAMED,)
            yield Imported(out, source.layout, repairs, source.left_out, warnings)

    def _problem_as_it_is(self, source: Source) -> InvalidAdapter | None:
        """Why the folder cannot be published as it is; None where it can."""
        if not source.is_plain:
            return InvalidAdapter("unknown_layout", f"it is in {source.layout} layout")
        try:
            self._check.check(inspect(source.path))
        except InvalidAdapter as problem:
            return problem
        return None

    def _warnings(self, source: Source) -> Iterator[str]:
        named = "" if source.config is None else named_base(_settings(source.config))
        if self._profile is not None and named and is_other_base(named, self._profile.name):
            yield (
                f"its configuration says that it was trained on {named}, and it would be served on "
                f"{self._profile.name}; publish it for the model that it was trained on"
            )

    def _convert(self, source: Source, out: Path) -> tuple[RepairDone, ...]:
        answer = self._do(self._job(source, out))
        if "code" in answer:
            raise InvalidAdapter(answer["code"], answer["message"])
        beside = source.path / TEMPLATE
        if beside.is_file() and not beside.is_symlink():
            shutil.copyfile(beside, out / TEMPLATE)  # for the check: it is not published
        if source.manifest is not None:
            shutil.copyfile(source.manifest, out / MANIFEST)
        return tuple(RepairDone(each["what"], each["why"]) for each in answer["repairs"])

    def _job(self, source: Source, out: Path) -> dict[str, Any]:
        base = _read_config(self._model)
        heads = base.get("num_attention_heads")
        return {
            "layout": source.layout,
            "config": None if source.config is None else str(source.config),
            "weights": [str(file) for file in source.weights],
            "out": str(out),
            "shapes": {} if self._profile is None else dict(self._profile.modules),
            "trained_on": None if self._profile is None else self._profile.name,
            "model_type": base.get("model_type"),
            "heads": heads,
            "key_heads": base.get("num_key_value_heads", heads),
        }


def _settings(config: Path) -> dict[str, object]:
    """Empty where the file is no JSON object, which is told elsewhere."""
    try:
        found = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _convert_in_child(job: dict[str, Any]) -> dict[str, Any]:
    size = sum(Path(file).stat().st_size for file in job["weights"])
    limits = ChildLimits(_SECONDS, max(_LEAST_BYTES, size * _TIMES_ITS_SIZE))
    child = ChildProcess(_PROGRAM, limits)
    try:
        return child.do(job)
    except ChildTooSlow as error:
        raise InvalidAdapter(
            "too_slow", f"reading it took more than {error.seconds:.0f} s of processor time"
        ) from error
    except ChildOutOfMemory as error:
        raise InvalidAdapter(
            "too_large",
            f"reading it took more than {error.memory_bytes >> 20} MiB of memory; save the "
            "adapter as safetensors with PEFT's save_pretrained",
        ) from error
    except (ChildDied, ChildRefused) as error:
        raise InvalidAdapter(
            "unreadable", f"the weights cannot be read ({error}); save the adapter again"
        ) from error
    finally:
        child.close()


def copy_files(folder: Path, to: Path) -> None:
    """Copy the files to publish into a new folder. Raises InvalidAdapter where it is there."""
    try:
        to.mkdir(parents=True)
        for file in inspect(folder).files:
            shutil.copyfile(file.path, to / file.name)
    except FileExistsError as error:
        raise InvalidAdapter("exists", f"{to} is there already; name a new folder") from error
    except OSError as error:
        raise InvalidAdapter(
            "unwritable", f"{error.filename or to} cannot be written ({error.strerror})"
        ) from error


def _read_config(model: Path | None) -> dict[str, Any]:
    if model is None:
        return {}
    try:
        return msgspec.json.decode((model / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise BaseModelError(
            f"{model / 'config.json'} cannot be read ({error}); prepare the base model again"
        ) from error
