"""Runs that differ in a few settings, trained one after the other, and a table of their results."""

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import msgspec

from loragate.trainer.errors import RunFileError
from loragate.trainer.pipeline.pipeline import plan_training, ready_data
from loragate.trainer.run.file import RunFile, convert_run_file
from loragate.trainer.run.folder import RunFolder, RunResult, write_whole
from loragate.trainer.run.run import Run
from loragate.trainer.training.train import train

TABLE = "sweep.json"


@dataclass(frozen=True, slots=True)
class Choice:
    """The values to try of one setting, such as `learning_rate` in the table `training`."""

    table: str
    setting: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """One run of a sweep; `changes` are by the settings' names."""

    folder: RunFolder
    changes: Mapping[str, object]
    result: RunResult


def sweep(run: Run, choices: Sequence[str]) -> list[Tried]:
    """Trains every combination, each in a folder of its own below the run's folder, on the same
    splits. Combinations that are complete are not trained again. Raises LoragateError.
    """
    combinations = runs_of(run.settings, [parse_choice(choice, run.settings) for choice in choices])
    run.folder.claim("sweep")
    splits = ready_data(run)
    tried: list[Tried] = []
    for number, (changed, changes) in enumerate(combinations, start=1):
        folder = RunFolder(run.folder.root / folder_name(changes))
        run.say(f"run {number} of {len(combinations)}: {folder_name(changes)}")
        settings = msgspec.structs.replace(changed, folder=str(folder.root))
        one = replace(run, settings=settings, folder=folder)
        if not folder.is_complete:
            folder.claim()
            write_whole(folder.run_file, settings.to_toml().encode())
            train(one, plan_training(one, splits))
        tried.append(Tried(folder, changes, folder.result()))
        write_table(run.folder, tried)  # after each, so that a sweep that is stopped has its table
    return tried


def parse_choice(text: str, run: RunFile) -> Choice:
    """Parses `learning_rate=1e-4,5e-5`, or `training.learning_rate=…` where two tables have the
    name. Raises RunFileError for an unknown setting.
    """
    name, equals, written = text.partition("=")
    table, _, setting = name.strip().rpartition(".")
    if not equals or not written.strip():
        raise RunFileError(f"--sweep {text!r}: write a setting and its values, as in rank=8,16")
    tables = cast(dict[str, object], msgspec.to_builtins(run))
    homes = [
        key
        for key, fields in tables.items()
        if isinstance(fields, dict) and setting in fields and table in ("", key)
    ]
    if len(homes) != 1:
        raise RunFileError(
            f"--sweep {text!r}: "
            + (f"there is no setting {name!r}" if not homes else f"say which: {', '.join(homes)}")
        )
    return Choice(homes[0], setting, tuple(_value(one) for one in written.split(",")))


def runs_of(run: RunFile, choices: Sequence[Choice]) -> list[tuple[RunFile, dict[str, object]]]:
    """The settings of every combination, each with its changes by name. Raises RunFileError for a
    value out of range.
    """
    found: list[tuple[RunFile, dict[str, object]]] = []
    for values in itertools.product(*(choice.values for choice in choices)):
        tree = cast(dict[str, dict[str, object]], msgspec.to_builtins(run))
        changes: dict[str, object] = {}
        for choice, value in zip(choices, values, strict=True):
            tree[choice.table][choice.setting] = value
            changes[choice.setting] = value
        found.append((convert_run_file(cast(dict[str, object], tree)), changes))
    return found


def folder_name(changes: Mapping[str, object]) -> str:
    """`learning_rate=0.0001,rank=8`."""
    return ",".join(f"{name}={value}" for name, value in changes.items()).replace("/", "_")


def best_of(tried: Iterable[Tried]) -> Tried:
    """The one with the lowest validation loss."""
    return min(tried, key=lambda one: one.result.diagnosis.best_validation_loss)


def write_table(folder: RunFolder, tried: Sequence[Tried]) -> None:
    """sweep.json: a row a run, the best first. Raises RunFolderError."""
    rows = [
        {
            **one.changes,
            "validation_loss": one.result.diagnosis.best_validation_loss,
            "best_step": one.result.diagnosis.best_step,
            "fit": one.result.diagnosis.fit,
            "seconds": one.result.seconds,
            "folder": str(one.folder.root),
        }
        for one in sorted(tried, key=lambda one: one.result.diagnosis.best_validation_loss)
    ]
    text = msgspec.json.format(msgspec.json.encode(rows), indent=2)
    write_whole(folder.root / TABLE, text + b"\n")


def _value(text: str) -> object:
    """Parsed as a TOML value, or else as text."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
