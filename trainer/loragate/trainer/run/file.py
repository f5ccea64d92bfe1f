"""The run file: the settings of one run, as one frozen tree, from one TOML file.

`examples/train/run.toml` has every setting with a comment. Paths are relative in files that are
kept or published, and absolute while the run is under way: so a run's folder can be moved together
with its inputs, and what is published names no paths of the machine.
"""

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, cast, get_args, get_origin

import msgspec
import tomli_w
from msgspec import Meta

from loragate.adapters.rendering.turns import RESERVED_VARIABLES
from loragate.trainer.data.files import hub_name
from loragate.trainer.data.settings import (
    BadRows,
    Cleaning,
    ConflictRule,
    FormatName,
    KeepOrDrop,
    Mend,
    PersonalDataRule,
    PreferenceRule,
    PreparationSettings,
    QualityLimits,
    Reading,
    Splitting,
)
from loragate.trainer.errors import RunFileError
from loragate.trainer.settings import (
    Auto,
    CostSettings,
    Count,
    EvaluationSettings,
    MethodSettings,
    ModelSettings,
    PublishSettings,
    Section,
    Share,
    TrainingSettings,
)

TestSetName = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]

# Raw data are prepared in the same way by `loragate data` and by a run that says nothing else.
_READING, _CLEANING, _SPLITTING = Reading(), Cleaning(), Splitting()


class DataSettings(Section, frozen=True):
    """Either `raw` files, which the run cleans and splits, or a folder of `splits`.

    Paths are relative to the run file.
    """

    raw: tuple[str, ...] = ()
    splits: str = ""
    # How `raw` is read, cleaned and split; unused for `splits`. See docs/training-data.md.
    format: FormatName = _READING.format
    bad_rows: BadRows = _READING.bad_rows
    label_field: str = _READING.label_field
    group_field: str = _READING.group_field
    # The format's fields by the files' own names, as { prompt = "text", completion = "category" }.
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    preferences: PreferenceRule = _READING.preferences
    language: str = _CLEANING.language or ""
    personal_data: PersonalDataRule = _CLEANING.personal_data
    near_duplicates: KeepOrDrop = _CLEANING.near_duplicates
    conflicts: ConflictRule = _CLEANING.conflicts
    personal_data_allowed: tuple[str, ...] = _CLEANING.allowed
    phone_regions: tuple[str, ...] = _CLEANING.phone_regions
    mend: tuple[Mend, ...] = _CLEANING.mend
    similarity: Annotated[float, Meta(ge=0.5, le=1)] = _CLEANING.similarity
    # Files whose rows are validated and tested, in place of a share of `raw`.
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    # A name under which the first test split is kept, to be the test split of later runs too.
    test_set: TestSetName = ""
    validation_share: Share = _SPLITTING.validation
    test_share: Share = _SPLITTING.test
    # A system message for every conversation that has none. It becomes part of the adapter's
    # contract, so the server says it too.
    system_prompt: str = ""
    # The longest conversation in tokens. "auto": what the model was made for, at most 1024.
    max_tokens: Count | Auto = "auto"
    too_long: Literal["refuse", "drop"] = "refuse"
    # Old examples to keep in the mix: a folder of splits, and their share of the training rows.
    replay: str = ""
    replay_share: BelowOne = 0.1

    def preparation(self, *, seed: int, max_tokens: int) -> PreparationSettings:
        """How `raw` is prepared; `max_tokens` is the run's limit with "auto" replaced."""
        return PreparationSettings(
            Reading(
                self.format,
                self.bad_rows,
                label_field=self.label_field,
                group_field=self.group_field,
                fields=tuple(self.fields.items()),
                preferences=self.preferences,
            ),
            Cleaning(
                language=self.language or None,
                personal_data=self.personal_data,
                near_duplicates=self.near_duplicates,
                similarity=self.similarity,
                conflicts=self.conflicts,
                allowed=self.personal_data_allowed,
                phone_regions=self.phone_regions,
                mend=self.mend,
            ),
            Splitting(self.validation_share, self.test_share, seed, self.similarity),
            QualityLimits(max_tokens),
        )


class RunFile(Section, frozen=True):
    """The whole tree. Paths in it are relative to the folder of the file that it was read from."""

    # Where the run keeps what it makes; see `RunFolder`.
    folder: str = "run"
    # Of the weights that start at random, the order of rows, dropout, and the split of raw data.
    seed: int = 0
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    method: MethodSettings = MethodSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    publish: PublishSettings = PublishSettings()
    cost: CostSettings = CostSettings()

    def to_toml(self) -> str:
        """TOML that `parse_run_file` reads back to an equal tree."""
        return tomli_w.dumps(_without_none(msgspec.to_builtins(self)))


def read_run_file(path: Path) -> RunFile:
    """Reads and checks a run file. Raises RunFileError, naming the key."""
    return parse_run_file(read_text(path), path)


def read_text(path: Path) -> str:
    """A run file's text. Raises RunFileError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"the run file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunFileError(f"the run file {path} is not UTF-8 text") from None


def parse_run_file(text: str, path: Path) -> RunFile:
    """Parses and checks TOML; `path` is for messages only. Raises RunFileError, naming the key."""
    try:
        return convert_run_file(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(f"{path} is not valid TOML: {error}") from None
    except RunFileError as error:
        raise RunFileError(f"{path}: {error}") from None


def convert_run_file(tree: dict[str, object]) -> RunFile:
    """Checks parsed TOML. Raises RunFileError, naming the key."""
    try:
        run = msgspec.convert(tree, RunFile)
    except msgspec.ValidationError as error:
        raise RunFileError(_plain(error)) from None
    _check_together(run)
    return run


def _check_together(run: RunFile) -> None:
    """Raises RunFileError where two settings do not go together."""
    data, method = run.data, run.method
    if bool(data.raw) == bool(data.splits):
        raise RunFileError(
            "[data] needs either 'raw', files that the run cleans and splits, or 'splits', a "
            "folder that `loragate data split` made"
        )
    if data.splits and (data.validation or data.test or data.test_set):
        raise RunFileError(
            "[data] validation, test and test_set go with 'raw'; 'splits' has its own validation "
            "and test, so leave them out"
        )
    if data.test and data.test_set:
        raise RunFileError(
            "[data] has both 'test', files of test rows, and 'test_set', a name for a split that "
            "is kept; leave one of them out"
        )
    if not method.target_modules:
        raise RunFileError("[method] target_modules is empty, so there is nothing to learn")
    kwargs = run.model.chat_template_kwargs
    if kwargs != "auto" and (reserved := sorted(RESERVED_VARIABLES & kwargs.keys())):
        raise RunFileError(
            f"[model] chat_template_kwargs has '{reserved[0]}', which is the rendering's own; "
            "leave it out"
        )
    if method.name == "full" and run.model.continue_from:
        raise RunFileError(
            "[model] continue_from goes on with an adapter's weights, and [method] name = 'full' "
            "learns none; leave one of them out"
        )


def _without_none(table: dict[str, object]) -> dict[str, object]:
    """Without keys whose value is None, which TOML cannot express."""
    return {
        key: _without_none(cast(dict[str, object], value)) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _plain(error: msgspec.ValidationError) -> str:
    """`Object contains unknown field `x` - at `$.data`` → `unknown setting 'x' in [data]`."""
    what, _, where = str(error).partition(" - at ")
    place = where.strip("`").removeprefix("$").lstrip(".")
    if what.startswith("Object contains unknown field"):
        key = what.rsplit(" ", 1)[-1].strip("`")
        return f"unknown setting '{key}' in [{place}]" if place else f"unknown setting '{key}'"
    if what.startswith("Object missing required field"):
        key = what.rsplit(" ", 1)[-1].strip("`")
        return f"the setting '{key}' is missing"
    if what.startswith("Invalid enum value") and (values := _values_of(place)):
        return f"{what} at '{place}'; it is one of {', '.join(map(str, values))}"
    return f"{what} at '{place}'"


def _values_of(place: str) -> list[object]:
    """The words or numbers that a setting may have, for one that is a choice of such."""
    kind: object = RunFile
    for name in place.split("."):
        fields = msgspec.structs.fields(cast(type[msgspec.Struct], kind))
        kind = next((field.type for field in fields if field.name == name), None)
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return list(_literals(kind))
    return []


def _literals(kind: object) -> Iterator[object]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
        return
    for inner in get_args(kind):
        yield from _literals(inner)


def with_absolute_paths(run: RunFile, root: Path) -> RunFile:
    """With paths absolute, which were absolute or relative to `root`."""
    return _changed(run, lambda path: str((root / path).resolve()))


def with_relative_paths(run: RunFile, root: Path) -> RunFile:
    """With paths, which must be absolute, relative to `root`."""
    return _changed(run, lambda path: os.path.relpath(path, root.resolve()))


def _changed(run: RunFile, change: Callable[[str], str]) -> RunFile:
    """Changes every path but that of the base model, which is mostly a name; empty ones stay."""

    def if_given(path: str) -> str:
        return change(path) if path and not hub_name(Path(path)) else path

    data, model, evaluation = run.data, run.model, run.evaluation
    return msgspec.structs.replace(
        run,
        folder=change(run.folder),
        data=msgspec.structs.replace(
            data,
            raw=tuple(if_given(path) for path in data.raw),
            validation=tuple(if_given(path) for path in data.validation),
            test=tuple(if_given(path) for path in data.test),
            splits=if_given(data.splits),
            replay=if_given(data.replay),
        ),
        model=msgspec.structs.replace(model, chat_template=if_given(model.chat_template)),
        evaluation=msgspec.structs.replace(
            evaluation,
            general_text=if_given(evaluation.general_text),
            tests=tuple(if_given(path) for path in evaluation.tests),
            benchmarks={name: if_given(path) for name, path in evaluation.benchmarks.items()},
            metrics={
                name: msgspec.structs.replace(each, schema=if_given(each.schema))
                for name, each in evaluation.metrics.items()
            },
        ),
    )


def for_others(run: RunFile) -> RunFile:
    """What of a run file may be published: of paths the last part alone, no prices, and nothing of
    where judges are.
    """
    run = _changed(run, lambda path: Path(path).name)
    base = run.model.base
    if Path(base).is_absolute() or base.startswith((".", "~")):
        base = Path(base).name
    model = msgspec.structs.replace(run.model, base=base)
    judges = {
        name: msgspec.structs.replace(each, url="", key_variable="")
        for name, each in run.evaluation.judges.items()
    }
    evaluation = msgspec.structs.replace(run.evaluation, judges=judges)
    return msgspec.structs.replace(
        run, folder="run", model=model, evaluation=evaluation, cost=CostSettings()
    )


def source_path(root: Path, name: str) -> Path:
    """Where a source of rows lies, whose name in the run file is relative to `root`: there, or on
    the hub.
    """
    return Path(name) if hub_name(Path(name)) else root / name


def input_paths(run: RunFile) -> list[tuple[str, str]]:
    """The files and folders that a training reads: each one's setting, and its path as it stands in
    the run file. What it starts from, `model.base` and `model.continue_from`, is not among them.
    """
    data = run.data
    given = [
        *(("[data] raw", path) for path in data.raw),
        *(("[data] validation", path) for path in data.validation),
        *(("[data] test", path) for path in data.test),
        ("[data] splits", data.splits),
        ("[data] replay", data.replay),
        ("[model] chat_template", run.model.chat_template),
    ]
    return [(setting, path) for setting, path in given if path]


def template_of(run: RunFile, root: Path) -> str | None:
    """The chat template that replaces the model's own, if the run has one. Raises RunFileError."""
    if not run.model.chat_template:
        return None
    path = root / run.model.chat_template
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise RunFileError(f"[model] chat_template: {path}: {error.strerror}") from None
