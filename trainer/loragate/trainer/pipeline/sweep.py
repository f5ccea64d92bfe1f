"""Runs that differ in a few settings, trained one after the other, and a table of their results."""

import itertools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import msgspec

from loragate.trainer.errors import RunFileError, RunFolderError
from loragate.trainer.pipeline.attempt import inputs_of
from loragate.trainer.pipeline.checks import require_sound
from loragate.trainer.pipeline.pipeline import ready_data, train_run
from loragate.trainer.run.changes import changes
from loragate.trainer.run.file import (
    RunFile,
    convert_run_file,
    read_run_file,
    with_absolute_paths,
)
from loragate.trainer.run.folder import RunFolder, RunResult, write_whole
from loragate.trainer.run.inputs import Inputs
from loragate.trainer.run.run import Run
from loragate.trainer.run.table import write_table


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


def sweep(
    run: Run,
    choices: Sequence[str],
    *,
    overwrite: bool = False,
    train: Callable[[Run], RunResult] = train_run,
) -> list[Tried]:
    """Trains every combination, each in a folder of its own below the run's folder, on the same
    splits. Combinations that are complete, and were begun with the same settings and files, are not
    trained again.

    Raises RunFolderError where one was begun otherwise, so that the table never ranks what cannot
    be compared, and LoragateError.
    """
    combinations = runs_of(run.settings, [parse_choice(choice, run.settings) for choice in choices])
    for changed, _ in combinations:
        require_sound(replace(run, settings=changed), publishes=False)
    inputs = inputs_of(run)
    if overwrite:
        run.folder.clear()
    earlier = _earlier(run)
    if earlier and (found := _incomparable(earlier, run, inputs)):
        raise RunFolderError(
            f"{run.folder.root} holds runs of a sweep that was begun otherwise: {'; '.join(found)}."
            " They could not be ranked beside new ones: bring that back, or begin anew with "
            "--overwrite"
        )
    run.folder.claim("sweep")
    if not earlier:
        run.folder.forget_data()
    inputs.write(run.folder)
    write_whole(run.folder.run_file, run.text.encode())
    splits = ready_data(run)
    tried: list[Tried] = []
    for number, (changed, tries) in enumerate(combinations, start=1):
        folder = RunFolder(run.folder.root / folder_name(tries))
        run.say(f"run {number} of {len(combinations)}: {folder_name(tries)}")
        # Its rows are the sweep's, wherever they came from.
        data = msgspec.structs.replace(changed.data, raw=(), splits=str(splits.path.resolve()))
        settings = msgspec.structs.replace(changed, folder=str(folder.root), data=data)
        one = replace(run, settings=settings, folder=folder)
        if not folder.is_complete:
            folder.claim()
            if not folder.is_stopped:
                folder.forget_attempt()
            inputs.write(folder)
            write_whole(folder.run_file, with_absolute_paths(settings, run.root).to_toml().encode())
            train(one)
        tried.append(Tried(folder, tries, folder.result()))
        # After each, so that a sweep that is stopped has its table.
        write_table(run.folder, _rows(run.folder, tried))
    return tried


def _earlier(run: Run) -> list[RunFolder]:
    """The folders of the sweep's runs that have learnt something."""
    if not run.folder.root.is_dir():
        return []
    folders = [RunFolder(path) for path in sorted(run.folder.root.iterdir()) if path.is_dir()]
    return [each for each in folders if each.is_complete or each.is_stopped]


def _incomparable(earlier: Sequence[RunFolder], run: Run, inputs: Inputs) -> list[str]:
    """What an earlier run had otherwise, but for what its own name says that it tries."""
    for folder in earlier:
        before = Inputs.read(folder)
        found = inputs.changes_since(before) if before else []
        own = {part.partition("=")[0] for part in folder.root.name.split(",")}
        found += [
            str(change)
            for change in changes(read_run_file(folder.run_file), run.settings, folder.resolved())
            if change.setting.rpartition(".")[2] not in own
        ]
        if found:
            return found
    return []


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


def _rows(folder: RunFolder, tried: Sequence[Tried]) -> list[dict[str, object]]:
    """A row a run, the best first."""
    return [
        {
            **one.changes,
            "validation_loss": one.result.diagnosis.best_validation_loss,
            "best_step": one.result.diagnosis.best_step,
            "fit": one.result.diagnosis.fit,
            "seconds": one.result.seconds,
            "folder": str(one.folder.root.relative_to(folder.root)),
        }
        for one in sorted(tried, key=lambda one: one.result.diagnosis.best_validation_loss)
    ]


def _value(text: str) -> object:
    """Parsed as a TOML value, or else as text."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
