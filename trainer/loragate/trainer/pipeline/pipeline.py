"""The steps of a run, in order: check, data, plan, training, evaluation, publishing.

Each takes the run and what the step before it made. The run's folder keeps all of it, and a run
that is resumed skips what is there.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress
from transformers import AutoConfig

from loragate.adapters.home import Home
from loragate.trainer.data.files import hub_name
from loragate.trainer.data.preparing import GivenSplits, PreparedData, prepare
from loragate.trainer.data.splits import SHEET, SplitFolder
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.measures import Measures
from loragate.trainer.pipeline.attempt import begin, require_same, update_free_settings
from loragate.trainer.pipeline.checks import (
    require_measurable,
    require_rank,
    require_room,
    require_sound,
)
from loragate.trainer.pipeline.evaluating import evaluate_run
from loragate.trainer.publishing.publishing import Published, publish_run
from loragate.trainer.run.file import read_text, source_path, with_absolute_paths
from loragate.trainer.run.folder import RunFolder, RunResult
from loragate.trainer.run.run import Run
from loragate.trainer.run.table import best_folder
from loragate.trainer.training import machine
from loragate.trainer.training.plan import TrainingPlan, longest_row, make_plan, notes_of
from loragate.trainer.training.train import train


def check(run: Run, *, resume: bool, overwrite: bool, publishes: bool = False) -> None:
    """Checks what can be checked before hours of training, and makes the run's folder ready. In all
    processes but the first it does nothing.

    Raises RunFolderError as `begin` does, and for a mistake in the run file what `require_sound`
    raises.
    """
    if not machine.is_first_process():
        return  # one process writes for all
    require_sound(run, publishes=publishes)
    begin(run, resume=resume, overwrite=overwrite)


def ready_data(run: Run) -> SplitFolder:
    """The splits that the run names, or those made of its raw files, now or earlier. Raises
    DataError.
    """
    data, made = run.settings.data, run.folder.data
    if data.splits:
        return SplitFolder.read(run.root / data.splits)
    if (made / SHEET).is_file():  # written last: what is there is whole
        return SplitFolder.read(made)
    base = run.base()
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True)
    prepared = prepare(
        [_as_shown(source_path(run.root, path)) for path in data.raw],
        made,
        data.preparation(seed=run.settings.seed, max_tokens=longest_row(data, config)),
        run.renderer(base),
        lambda sequence, description, total=None: run.progress.track(
            sequence, total=total, description=description
        ),
        _given_splits(run),
    )
    run.say(_summary(prepared))
    for finding in prepared.quality.findings:
        if finding.level != "good":
            run.say(f"{finding.level}: {finding.sentence}")
    return prepared.folder


def _given_splits(run: Run) -> GivenSplits:
    data = run.settings.data
    test_sets = run.home.root / "test_sets"
    return GivenSplits(
        tuple(_as_shown(source_path(run.root, path)) for path in data.validation),
        tuple(_as_shown(source_path(run.root, path)) for path in data.test),
        test_sets / f"{data.test_set}.jsonl" if data.test_set else None,
    )


def plan_training(run: Run, splits: SplitFolder) -> TrainingPlan:
    """The plan, which is also written as the folder's resolved run file. Raises LoragateError."""
    # It is there only where a run goes on. "auto" keeps its first values: a second measurement
    # could come out otherwise.
    if run.folder.resolved_file.is_file():
        run = run.resolved()
    plan = make_plan(run, splits)
    require_rank(run, plan.settings.method)
    require_measurable(plan.settings.evaluation, splits)
    require_room(run, plan.settings, plan.config)
    for note in notes_of(plan, run.shared):
        run.say(note)
    if machine.is_first_process():
        run.folder.write_resolved(plan.settings)
    return plan


def train_run(run: Run) -> RunResult:
    """Data, plan and training, or the result of an earlier training. Raises LoragateError."""
    with machine.first_process_first():
        if run.folder.is_complete:
            return run.folder.result()
        plan = plan_training(run, ready_data(run))
    run.phases.end("data")
    result = train(run, plan)
    run.phases.end("training")
    return result


def evaluate(run: Run) -> Evaluation:
    """Evaluates a trained run. Raises EvaluationError, and what reading the run raises."""
    found = asyncio.run(evaluate_run(run.resolved()))
    run.phases.end("evaluation")
    return found


def publish(run: Run, evaluation: Evaluation) -> Published:
    """Publishes the run's adapter, and merges it where the run asks for that. Raises PublishRefused
    where a requirement does not hold, InvalidAdapter where the publish check fails.
    """
    published = publish_run(run.resolved(), evaluation)
    run.phases.end("publishing")
    return published


def evaluated(run: Run) -> Evaluation:
    """The evaluation of a trained run, with its requirements held against what was measured; made
    now where there is none. Raises what `evaluate` raises, and InvalidRequirement.
    """
    try:
        found = Evaluation.read(run.folder.evaluation)
    except EvaluationError:
        return evaluate(run)
    settings = run.resolved().settings.evaluation
    return found.held_against(
        Measures.of(settings, run.folder.root.parent, found.more).requirements
    )


def finished(path: Path, home: Home, progress: Progress, say: Callable[[str], None]) -> Run:
    """The trained run of a folder, of a sweep's folder (the best of it), or of a run file, whose
    [evaluation], [publish] and [cost] count then.

    Raises RunFolderError where there is none, or one that was begun otherwise than the file says.
    """
    if path.is_dir():
        folder = best_folder(RunFolder(path.resolve()))
        folder.result()  # raises where there is none
        return replace(Run.finished(folder, home, progress), say=say)
    run = Run.load(path, read_text(path), home, progress, say)
    run.folder.result()
    require_same(run)
    if path.resolve() not in (run.folder.resolved_file, run.folder.run_file):
        settings = with_absolute_paths(run.settings, run.root)
        update_free_settings(run.folder, settings, run.text)
    return run


def _as_shown(path: Path) -> Path:
    """Relative to the working directory where it is below it; reports show it so."""
    if hub_name(path):
        return path
    found = path.resolve()
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def _summary(prepared: PreparedData) -> str:
    cleaned, splits = prepared.report.cleaned, prepared.folder.splits
    return (
        f"Data: {cleaned.rows_read:,} rows read, {len(cleaned.rows):,} kept; {len(splits['train'])}"
        f" to train, {len(splits['validation'])} to validate, {len(splits['test'])} to test."
    )
