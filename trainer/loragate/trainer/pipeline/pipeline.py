"""The steps of a run, in order: check, data, plan, training, evaluation, publishing.

Each takes the run and what the step before it made. The run's folder keeps all of it, and a run
that is resumed skips what is there.
"""

import asyncio
from pathlib import Path

from transformers import AutoConfig

from loragate.trainer.data.preparing import PreparedData, prepare
from loragate.trainer.data.splits import SHEET, SplitFolder
from loragate.trainer.errors import RunFileError, RunFolderError
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.pipeline.evaluating import evaluate_run
from loragate.trainer.publishing.publishing import Published, publish_run
from loragate.trainer.registry import require_tenant
from loragate.trainer.run.folder import RunResult, write_whole
from loragate.trainer.run.run import Run
from loragate.trainer.training import machine
from loragate.trainer.training.checkpoints import Checkpoints
from loragate.trainer.training.plan import TrainingPlan, longest_row, make_plan, notes_of
from loragate.trainer.training.train import train


def check(run: Run, *, resume: bool, overwrite: bool, publishes: bool = False) -> None:
    """Checks what can be checked before hours of training, and claims the run's folder. In all
    processes but the first it does nothing.

    Raises RunFolderError where the folder holds another run or anything else, and InvalidName and
    TenantNotFound where the run could not be published.
    """
    if not machine.is_first_process():
        return  # one process writes for all
    adapter = run.settings.publish.adapter
    if publishes and adapter:
        require_tenant(run.home, adapter)
    if resume:
        _require_same(run)
        return
    _require_apart(run)
    folder = run.folder
    if overwrite:
        folder.clear()
    elif folder.is_complete or Checkpoints(folder.checkpoints).latest() is not None:
        raise RunFolderError(
            f"{folder.root} holds a run that "
            + ("is complete" if folder.is_complete else "was stopped; go on with --resume")
            + ", or begin anew with --overwrite"
        )
    folder.claim()
    folder.log.unlink(missing_ok=True)
    write_whole(folder.run_file, run.text.encode())


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
        [_as_shown(run.root / path) for path in data.raw],
        made,
        data.preparation(seed=run.settings.seed, max_tokens=longest_row(data, config)),
        run.renderer(base),
        lambda sequence, description, total=None: run.progress.track(
            sequence, total=total, description=description
        ),
    )
    run.say(_summary(prepared))
    for finding in prepared.quality.findings:
        if finding.level != "good":
            run.say(f"{finding.level}: {finding.sentence}")
    return prepared.folder


def plan_training(run: Run, splits: SplitFolder) -> TrainingPlan:
    """The plan, which is also written as the folder's resolved run file. Raises LoragateError."""
    # "auto" keeps its first values: a second measurement could come out otherwise.
    if run.folder.resolved_file.is_file():
        run = run.resolved()
    plan = make_plan(run, splits)
    _require_rank(run, plan)
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


def _require_same(run: Run) -> None:
    folder = run.folder
    try:
        begun = folder.run_file.read_text("utf-8")
    except OSError:
        raise RunFolderError(
            f"{folder.root} holds no run to go on with; start it without --resume"
        ) from None
    if begun != run.text:
        raise RunFolderError(
            f"the run file has changed since {folder.root} was begun (its copy is "
            f"{folder.run_file}); bring it back to go on, or begin anew with --overwrite"
        )


def _require_apart(run: Run) -> None:
    """Raises RunFolderError where the run's own input lies in its folder, which is for output."""
    data, folder = run.settings.data, run.folder
    names = (*data.raw, data.splits, data.replay, run.settings.model.chat_template)
    inputs = [(run.root / name).resolve() for name in names if name]
    for path in (run.file.resolve(), *inputs):
        is_its_copy = path in (folder.run_file, folder.resolved_file)  # which can be trained again
        if path.is_relative_to(folder.root) and not is_its_copy:
            raise RunFolderError(
                f"{path} lies in {folder.root}, the folder of the run that reads it; give the run "
                "a folder of its own ('folder' in the run file)"
            )


def _require_rank(run: Run, plan: TrainingPlan) -> None:
    """Raises RunFileError where no server here would take the adapter that is to be published."""
    method, most = plan.settings.method, run.shared.max_lora_rank
    adapter = plan.settings.publish.adapter
    if adapter and method.name != "full" and method.rank != "auto" and method.rank > most:
        raise RunFileError(
            f"[method] rank is {method.rank}, and a server here takes {most} at most, so "
            f"{adapter} could not be published; lower it, or raise engine.max_lora_rank"
        )


def _as_shown(path: Path) -> Path:
    """Relative to the working directory where it is below it; reports show it so."""
    found = path.resolve()
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def _summary(prepared: PreparedData) -> str:
    cleaned, splits = prepared.report.cleaned, prepared.folder.splits
    return (
        f"Data: {cleaned.rows_read:,} rows read, {len(cleaned.rows):,} kept; {len(splits['train'])}"
        f" to train, {len(splits['validation'])} to validate, {len(splits['test'])} to test."
    )
