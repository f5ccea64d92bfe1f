"""The run file: all that one run is asked to do, as one frozen tree, from one TOML.

The commented sample of every setting is `examples/train/run.toml`.
"""

import tomllib
from pathlib import Path
from typing import cast

import msgspec
import tomli_w

from loragate.trainer.errors import RunFileError
from loragate.trainer.settings.cost import CostSettings
from loragate.trainer.settings.data import DataSettings
from loragate.trainer.settings.evaluation import EvaluationSettings
from loragate.trainer.settings.method import MethodSettings
from loragate.trainer.settings.model import ModelSettings
from loragate.trainer.settings.publish import PublishSettings
from loragate.trainer.settings.section import Section
from loragate.trainer.settings.training import TrainingSettings


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
    """Raises RunFileError, naming the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"the run file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunFileError(f"the run file {path} is not UTF-8 text") from None
    return parse_run_file(text, path)


def parse_run_file(text: str, path: Path) -> RunFile:
    """`path` is for the message only. Raises RunFileError, naming the key."""
    try:
        return convert_run_file(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(f"{path} is not valid TOML: {error}") from None
    except RunFileError as error:
        raise RunFileError(f"{path}: {error}") from None


def convert_run_file(tree: dict[str, object]) -> RunFile:
    """Raises RunFileError, naming the key."""
    try:
        run = msgspec.convert(tree, RunFile)
    except msgspec.ValidationError as error:
        raise RunFileError(_plain(error)) from None
    check(run)
    return run


def check(run: RunFile) -> None:
    """Raises RunFileError where two settings do not go together."""
    data, method = run.data, run.method
    if bool(data.raw) == bool(data.splits):
        raise RunFileError(
            "[data] needs either 'raw', files that the run cleans and splits, or 'splits', a "
            "folder that `loragate data split` made"
        )
    if not method.target_modules:
        raise RunFileError("[method] target_modules is empty, so there is nothing to learn")
    if method.name == "full" and run.model.continue_from:
        raise RunFileError(
            "[model] continue_from goes on with an adapter's weights, and [method] name = 'full' "
            "learns none; leave one of them out"
        )


def _without_none(table: dict[str, object]) -> dict[str, object]:
    """TOML has no word for "not given"; it is said by leaving the key out."""
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
    return f"{what} at '{place}'"
