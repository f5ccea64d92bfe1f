"""What can be known of a run before its first step: each check raises what it finds wrong."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transformers import AutoConfig, PretrainedConfig

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.names import AdapterName
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.files import hub_name
from loragate.trainer.data.reading import read_rows
from loragate.trainer.data.splits import SplitFolder
from loragate.trainer.errors import RunFileError, RunFolderError, TrainingError
from loragate.trainer.evaluation.evaluation import FILE as EVALUATION
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.judges import key_of
from loragate.trainer.evaluation.losses import general_paragraphs
from loragate.trainer.evaluation.measures import Measures
from loragate.trainer.evaluation.metrics import OF_LABELS, Metric
from loragate.trainer.evaluation.requirements import subject_of
from loragate.trainer.pipeline.test_sets import require_test_sets
from loragate.trainer.registry import require_tenant
from loragate.trainer.run.file import RunFile, input_paths, source_path, with_absolute_paths
from loragate.trainer.run.run import Run
from loragate.trainer.settings import EvaluationSettings, MethodSettings, resolved
from loragate.trainer.training import machine
from loragate.trainer.training.callbacks import check_trackers
from loragate.trainer.training.encoding import EncodedRow, EncodedRows, Encoder
from loragate.trainer.training.memory import adapter_count, parameter_count
from loragate.trainer.training.plan import (
    find_parent,
    fit_batch,
    linear_modules,
    longest_row,
    memory_for,
    require_targets,
    resolve_model,
)

_EXAMINED: Final = 1000  # rows, the longest, that a check alone turns into tokens
# Bytes on the disk of a trained number: two checkpoints with both moments of AdamW while one takes
# the other's place, two best weights, and the adapter.
_DISK_BYTES: Final = 2 * 12 + 2 * 4 + 4
_MERGED_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
_GIB: Final = 2**30


class RunUnsound(LoragateError):
    """Several things are wrong with a run; the message has a line for each."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what is wrong with it, if anything is."""

    name: str
    problem: LoragateError | None


def require_sound(run: Run, *, publishes: bool) -> None:
    """Raises what is wrong with the run, as far as it can be known without its rows: RunUnsound
    where that is more than one thing.
    """
    problems = [each.problem for each in _quick(run, publishes=publishes) if each.problem]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RunUnsound(
            f"{len(problems)} things are wrong with the run:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )


def examine(run: Run, *, publishes: bool = True) -> Iterator[Check]:
    """Every check, one after the other: those of `require_sound`, then the rows as they are in
    their files, the memory of the longest, and the disk.
    """
    base = None
    for check in _quick(run, publishes=publishes):
        yield check
        base = check if check.name == "base model" else base
    if base is not None and base.problem is not None:
        return  # nothing of the rest can be known
    try:
        rows = _read(run)
    except LoragateError as error:
        yield Check("data", error)
        return
    config = _config(run)
    encoded: list[EncodedRows] = []
    yield _tried("data", lambda: encoded.append(_longest(run, rows, config)))
    if not encoded:
        return
    settings: list[RunFile] = []
    yield _tried("memory", lambda: settings.append(_require_memory(run, config, encoded[0])))
    if settings:
        yield _tried("disk", lambda: require_room(run, settings[0], config))


def _quick(run: Run, *, publishes: bool) -> Iterator[Check]:
    settings = run.settings
    yield _tried("requirements", lambda: _require_evaluation(run))
    yield _tried("trackers", lambda: check_trackers(settings.training))
    yield _tried("device", lambda: machine.device(settings.training))
    yield _tried("folder", lambda: _require_writable(run.folder.root))
    yield _tried("files", lambda: _require_files(run))
    base = _tried("base model", run.base)
    yield base
    if base.problem is None:
        yield _tried("tokenizer", lambda: _require_tokenizer(run))
        yield _tried("layers", lambda: require_targets(settings.method, linear_modules(run.base())))
        yield _tried("parent", lambda: _require_parent(run))
    if publishes and settings.publish.adapter:
        yield _tried("publishing", lambda: _require_publishable(run, base.problem is None))
        yield _tried("rank", lambda: require_rank(run, settings.method))
    if publishes:
        yield _tried("server", _require_server)


def _tried(name: str, check: Callable[[], object]) -> Check:
    try:
        check()
    except LoragateError as error:
        return Check(name, error)
    return Check(name, None)


def _require_evaluation(run: Run) -> None:
    settings = with_absolute_paths(run.settings, run.root).evaluation
    measures = Measures.of(settings, run.folder.root.parent, _measured(run))
    require_test_sets(run, measures.requirements)
    if not run.folder.is_complete:  # else its judges may have been asked
        for judge in measures.judges:
            key_of(judge, os.environ)
    if settings.general_text:
        general_paragraphs(settings.general_text)


def _measured(run: Run) -> dict[str, Metric]:
    """The metrics of an evaluation that is there, whose settings may have gone since."""
    if not (run.folder.evaluation / EVALUATION).is_file():
        return {}
    return Evaluation.read(run.folder.evaluation).more


def require_measurable(settings: EvaluationSettings, splits: SplitFolder) -> None:
    """Raises RunFileError where a requirement is of labels and no row that is asked has one."""
    if settings.labels or any(row.label for row in splits.splits["test"]):
        return
    for sentence in settings.require:
        metric, rows = subject_of(sentence)
        if metric in OF_LABELS and not rows:
            raise RunFileError(
                f"[evaluation] require has {sentence!r}, and no row of the test split has a "
                "label; name the field that has it with [data] label_field, or the labels with "
                "[evaluation] labels, or require something else, as 'rouge_l - base >= 20'"
            )


def require_rank(run: Run, method: MethodSettings) -> None:
    """Raises RunFileError where no server here would take the adapter that is to be published."""
    most, adapter = run.shared.max_lora_rank, run.settings.publish.adapter
    if adapter and method.name != "full" and method.rank != "auto" and method.rank > most:
        raise RunFileError(
            f"[method] rank is {method.rank}, and a server here takes {most} at most, so "
            f"{adapter} could not be published; lower it, or raise engine.max_lora_rank"
        )


def require_room(run: Run, settings: RunFile, config: PretrainedConfig) -> None:
    """Raises RunFolderError where the disk has too little room for what the run will write.
    `settings` have no "auto".
    """
    text, method = config.get_text_config(), settings.method
    parameters = parameter_count(text)
    trained = parameters if method.name == "full" else adapter_count(text, method)
    wanted = [(run.folder.root, trained * _DISK_BYTES, "checkpoints and the adapter")]
    if settings.publish.adapter and settings.publish.merge:
        size = parameters * _MERGED_BYTES[settings.publish.merge_dtype]
        wanted.append((run.home.artifacts, size, "the merged model"))
    for folder, needed, what in wanted:
        free = shutil.disk_usage(_nearest(folder)).free
        if needed > free:
            raise RunFolderError(
                f"{what} take about {needed / _GIB:.1f} GiB on the disk of {folder}, where "
                f"{free / _GIB:.1f} GiB are free; make room, or choose another folder"
            )


def _require_writable(folder: Path) -> None:
    place = _nearest(folder)
    if not place.is_dir():
        raise RunFolderError(
            f"{folder} cannot be made: {place} is a file; give the run another folder"
        )
    try:
        probe = place / ".loragate-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunFolderError(
            f"{place} cannot be written ({error.strerror}); allow this user to, or give the run "
            "another folder ('folder' in the run file)"
        ) from None


def _require_files(run: Run) -> None:
    """Files of rows may be gone where splits were made of them already."""
    has_splits = run.folder.data.is_dir()
    for setting, name in input_paths(run.settings):
        path = source_path(run.root, name)
        if hub_name(path) or path.exists() or (setting == "[data] raw" and has_splits):
            continue
        raise DataError(
            f"{setting}: there is no {path}; correct the path, which is relative to the run file"
        )


def _require_tokenizer(run: Run) -> None:
    base = run.base()
    try:
        renderer = run.renderer(base)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the tokenizer of base model {base.name!r} cannot be loaded ({error}); prepare the "
            "model again"
        ) from error
    if not isinstance(renderer, Renderer) or renderer.tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of base model {base.name!r} has no end-of-sequence token, so nothing "
            "could learn to stop; take an instruct model"
        )


def _require_parent(run: Run) -> None:
    if run.settings.model.continue_from:
        find_parent(run.settings.model.continue_from, run.home)


def _require_publishable(run: Run, has_base: bool) -> None:
    settings, adapter = run.settings, run.settings.publish.adapter
    if settings.method.name == "full":
        raise RunFileError(
            "[method] name is 'full', which changes the base model itself and makes no adapter to "
            f"publish; leave [publish] adapter out (it is {adapter!r}), or take 'lora'"
        )
    require_tenant(run.home, adapter)
    if has_base:
        profile = BaseProfile.read(run.base(), run.shared.read_template())
        PublishCheck(profile, None).check_name(AdapterName.parse(adapter))


def _require_server() -> None:
    command = Path(sys.executable).with_name("loragate")
    if not command.is_file():
        raise RunFolderError(
            f"the evaluation asks a server, and there is no {command} to start one; install "
            "loragate into this environment, or end before that with --only-train"
        )


def _read(run: Run) -> list[tuple[str, Example]]:
    """Every row as its file has it, by where it stands."""
    data = run.settings.data
    if data.splits:
        splits = SplitFolder.read(run.root / data.splits).splits
        return [
            (f"row {number} of {name}", row)
            for name, rows in splits.items()
            for number, row in enumerate(rows, start=1)
        ]
    reading = data.preparation(seed=run.settings.seed, max_tokens=1).reading
    read = read_rows([source_path(run.root, path) for path in data.raw], reading)
    return [(str(row.place), row.example) for row in read.rows]


def _longest(run: Run, rows: list[tuple[str, Example]], config: PretrainedConfig) -> EncodedRows:
    """The longest rows, encoded. Raises TrainingError where one cannot be trained."""
    data = run.settings.data
    most = longest_row(data, config)
    encoder = Encoder(run.renderer(run.base()), sys.maxsize, "refuse", data.system_prompt)
    rows = sorted(rows, key=lambda row: -sum(len(turn.content) for turn in row[1].messages))
    encoded: list[EncodedRow] = []
    too_long = ""
    for place, example in rows[:_EXAMINED]:
        try:
            found = encoder.encode([example], place).rows
        except TrainingError as error:
            raise TrainingError(str(error).replace(f"row 1 of {place}", place)) from None
        longest = max(len(row.ids) for row in found)
        if longest > most and not too_long:
            too_long = f"{place} has {longest} tokens, and [data] max_tokens are {most}"
        encoded += [row for row in found if len(row.ids) <= most]
    if too_long and data.too_long == "refuse":
        raise TrainingError(
            f"{too_long}; raise it, shorten such rows, or leave them out with [data] too_long = "
            "'drop'"
        )
    if not encoded:
        raise TrainingError(f"every row is too long: {too_long}; raise [data] max_tokens")
    return EncodedRows(tuple(encoded))


def _require_memory(run: Run, config: PretrainedConfig, rows: EncodedRows) -> RunFile:
    """Raises TrainingError where the longest batch does not fit. The settings without those "auto"s
    that do not depend on the number of rows.
    """
    given = run.settings
    parent = find_parent(given.model.continue_from, run.home) if given.model.continue_from else None
    settings = resolve_model(given, run.root, config, parent, linear_modules(run.base()))
    settings = fit_batch(settings, config, rows)
    training = settings.training
    memory = memory_for(config, settings.method, training, rows)
    memory.require(machine.free_memory_bytes(training.device), resolved(training.batch_size))
    return settings


def _config(run: Run) -> PretrainedConfig:
    return AutoConfig.from_pretrained(str(run.base().path), local_files_only=True)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())
