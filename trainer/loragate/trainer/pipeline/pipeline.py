"""A run from end to end: raw data, splits, training, evaluation, publishing.

Each step leaves its result in the run's folder, and a run that goes on skips what is done.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.progress import Progress
from transformers import AutoConfig

from loragate.adapters.base_models.preparation import find
from loragate.adapters.home import Home
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.settings import SharedSettings, read_settings
from loragate.trainer.data import preparing as data_preparing
from loragate.trainer.data.settings import Cleaning, DataSettings, Judging, Reading, Splitting
from loragate.trainer.data.split_folder import SHEET, SplitFolder
from loragate.trainer.errors import RunFileError, RunFolderError
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.pipeline.evaluating import evaluate_run
from loragate.trainer.publishing.publishing import Published, publish_run
from loragate.trainer.run.file import RunFile, parse_run_file
from loragate.trainer.run.folder import RunFolder, RunResult, write_whole
from loragate.trainer.run.phases import Phases
from loragate.trainer.training import processes
from loragate.trainer.training.checkpoints import Checkpoints
from loragate.trainer.training.preparing import Prepared, prepare
from loragate.trainer.training.resolve import longest_row, template_of
from loragate.trainer.training.sweep import Tried, folder_name, parse_choice, runs_of, write_table
from loragate.trainer.training.train import train


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where a run takes place: the run file's text and folder, the home, who is told what it does,
    what is set here for servers too, and how long each phase takes.
    """

    path: Path
    text: str
    home: Home
    progress: Progress
    say: Callable[[str], None]
    settings: SharedSettings = field(default_factory=read_settings)
    phases: Phases = field(default_factory=Phases)

    @property
    def root(self) -> Path:
        """What paths in the run file are relative to."""
        return self.path.resolve().parent

    def run_file(self) -> RunFile:
        """With the server's chat template where the run has none of its own: it is what requests
        will be rendered with. Raises RunFileError.
        """
        run = parse_run_file(self.text, self.path)
        if run.model.chat_template or not self.settings.chat_template:
            return run
        model = msgspec.structs.replace(run.model, chat_template=self.settings.chat_template)
        return msgspec.structs.replace(run, model=model)

    def folder(self) -> RunFolder:
        return RunFolder((self.root / self.run_file().folder).resolve())


def open_folder(workshop: Workshop, *, resume: bool, overwrite: bool) -> RunFolder:
    """The run's folder, ready for this run. Raises RunFolderError where it holds another one."""
    folder = workshop.folder()
    if not processes.is_first():
        return folder
    has_begun = Checkpoints(folder.checkpoints).latest() is not None
    if resume:
        _require_same(folder, workshop.text)
        return folder
    _require_apart(workshop, folder)
    if overwrite:
        folder.clear()
    elif folder.is_complete or has_begun:
        raise RunFolderError(
            f"{folder.root} holds a run that "
            + ("is complete" if folder.is_complete else "was stopped; go on with --resume")
            + ", or begin anew with --overwrite"
        )
    folder.claim()
    folder.log.unlink(missing_ok=True)
    write_whole(folder.run_file, workshop.text.encode())
    return folder


def _require_apart(workshop: Workshop, folder: RunFolder) -> None:
    """Raises RunFolderError where the run's own input lies in its folder, which is for output."""
    run = workshop.run_file()
    data, template = run.data, run.model.chat_template
    given = [name for name in (*data.raw, data.splits, data.replay, template) if name]
    for path in (workshop.path.resolve(), *((workshop.root / name).resolve() for name in given)):
        is_its_copy = path in (folder.run_file, folder.resolved_file)  # which can be trained again
        if path.is_relative_to(folder.root) and not is_its_copy:
            raise RunFolderError(
                f"{path} lies in {folder.root}, the folder of the run that reads it; give the run "
                "a folder of its own ('folder' in the run file)"
            )


def ready_data(workshop: Workshop, run: RunFile, folder: RunFolder) -> SplitFolder:
    """The splits of the run: those it names, or made of its raw files. Raises DataError."""
    if run.data.splits:
        return SplitFolder.read(workshop.root / run.data.splits)
    if (folder.data / SHEET).is_file():
        return SplitFolder.read(folder.data)
    base = find(run.model.base, workshop.home.models)
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True)
    progress = workshop.progress
    prepared = data_preparing.prepare(
        [_as_shown(workshop.root / path) for path in run.data.raw],
        folder.data,
        data_settings(run, longest_row(run.data, config)),
        Renderer.load(base.path, template_of(run, workshop.root)),
        lambda sequence, description, total=None: progress.track(
            sequence, total=total, description=description
        ),
    )
    workshop.say(_account(prepared))
    for finding in prepared.judgement.findings:
        if finding.level != "good":
            workshop.say(f"{finding.level}: {finding.sentence}")
    return prepared.folder


def _as_shown(path: Path) -> Path:
    """As the user would write it where they are: reports name it."""
    found = path.resolve()
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def _account(prepared: data_preparing.Prepared) -> str:
    cleaned, splits = prepared.report.cleaned, prepared.folder.splits
    return (
        f"Data: {cleaned.rows_read:,} rows read, {len(cleaned.rows):,} kept; {len(splits['train'])}"
        f" to train, {len(splits['validation'])} to validate, {len(splits['test'])} to test."
    )


def data_settings(run: RunFile, max_tokens: int) -> DataSettings:
    """The run file's [data] as the data's own settings."""
    data = run.data
    return DataSettings(
        Reading(
            data.format, data.bad_rows, label_field=data.label_field, group_field=data.group_field
        ),
        Cleaning(
            language=data.language or None,
            personal_data=data.personal_data,
            near_duplicates=data.near_duplicates,
            similarity=data.similarity,
            conflicts=data.conflicts,
        ),
        Splitting(data.validation_share, data.test_share, run.seed, data.similarity),
        Judging(max_tokens),
    )


def train_run(workshop: Workshop, run: RunFile, folder: RunFolder) -> RunResult:
    """Data and training; at once where it is done already. Raises LoragateError."""
    with processes.first_goes_first():
        if folder.is_complete:
            return folder.result()
        prepared = _prepared(workshop, run, folder, ready_data(workshop, run, folder))
    workshop.phases.end("data")
    result = train(prepared, folder, workshop.progress)
    workshop.phases.end("training")
    return result


def sweep(workshop: Workshop, folder: RunFolder, choices: Sequence[str]) -> list[Tried]:
    """Trains every combination in a folder of its own, on the same splits; complete ones are not
    trained again. Raises LoragateError.
    """
    run = workshop.run_file()
    combinations = runs_of(run, [parse_choice(choice, run) for choice in choices])
    folder.claim("sweep")
    splits = ready_data(workshop, run, folder)
    tried: list[Tried] = []
    for number, (changed, changes) in enumerate(combinations, start=1):
        own = RunFolder(folder.root / folder_name(changes))
        workshop.say(f"run {number} of {len(combinations)}: {folder_name(changes)}")
        changed = msgspec.structs.replace(changed, folder=str(own.root))
        if not own.is_complete:
            own.claim()
            write_whole(own.run_file, changed.to_toml().encode())
            train(_prepared(workshop, changed, own, splits), own, workshop.progress)
        tried.append(Tried(own, changes, own.result()))
        write_table(folder, tried)
    return tried


def evaluate(workshop: Workshop, folder: RunFolder) -> Evaluation:
    """Raises EvaluationError, and what reading the run raises."""
    found = asyncio.run(evaluate_run(folder, workshop.home, workshop.progress))
    workshop.phases.end("evaluation")
    return found


def publish(workshop: Workshop, folder: RunFolder, evaluation: Evaluation) -> Published:
    """With its reference, and merged where the run asks for that. Raises PublishRefused where the
    evaluation says no, InvalidAdapter where the gate does.
    """
    published = publish_run(folder, workshop.home, evaluation)
    workshop.phases.end("publishing")
    return published


def _prepared(workshop: Workshop, run: RunFile, folder: RunFolder, splits: SplitFolder) -> Prepared:
    """With "auto" as it came to when the run first started, where it did."""
    if folder.resolved_file.is_file():
        run = folder.resolved()
    prepared = prepare(run, workshop.root, splits, workshop.home)
    _require_rank(prepared.run, workshop.settings.max_lora_rank)
    if processes.is_first():
        folder.write_resolved(prepared.run)
    return prepared


def _require_rank(run: RunFile, most: int) -> None:
    """Raises RunFileError where no server here would take the adapter that is to be published."""
    rank = run.method.rank
    if run.publish.adapter and run.method.name != "full" and rank != "auto" and rank > most:
        raise RunFileError(
            f"[method] rank is {rank}, and a server here takes {most} at most, so "
            f"{run.publish.adapter} could not be published; lower it, or raise "
            "engine.max_lora_rank"
        )


def _require_same(folder: RunFolder, text: str) -> None:
    try:
        begun = folder.run_file.read_text("utf-8")
    except OSError:
        raise RunFolderError(
            f"{folder.root} holds no run to go on with; start it without --resume"
        ) from None
    if begun != text:
        raise RunFolderError(
            f"the run file has changed since {folder.root} was begun (its copy is "
            f"{folder.run_file}); bring it back to go on, or begin anew with --overwrite"
        )
