"""Carries out a training plan, from loading the model to the result."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from loragate.trainer.errors import RunFolderError, TrainingError
from loragate.trainer.run.folder import RunResult
from loragate.trainer.run.run import Run
from loragate.trainer.settings import resolved
from loragate.trainer.training import machine
from loragate.trainer.training.adapter_trainer import AdapterTrainer, training_arguments
from loragate.trainer.training.callbacks import (
    AtTheEnd,
    Bar,
    Clock,
    KeepBest,
    Log,
    StopOnRequest,
    check_trackers,
    tracker_callbacks,
)
from loragate.trainer.training.checkpoints import Checkpoints, RunState, step_of
from loragate.trainer.training.export import export
from loragate.trainer.training.memory import Memory
from loragate.trainer.training.models import add_adapter, continue_adapter, load_base
from loragate.trainer.training.plan import TrainingPlan, memory_for


class Interrupted(TrainingError):
    """A signal stopped the run; a checkpoint holds what was learnt."""


def train(run: Run, plan: TrainingPlan) -> RunResult:
    """Trains from the beginning or from the newest checkpoint in the run's folder, and exports the
    result, which it returns. Every process of the run calls it.

    Raises TrainingError (Interrupted after Ctrl-C) or RunFolderError; the checkpoints stay then.
    """
    settings = plan.settings.training
    check_trackers(settings)
    batch_size = resolved(settings.batch_size)
    memory_of(plan).require(machine.free_memory_bytes(settings.device), batch_size)
    torch.set_num_threads(resolved(settings.threads))
    checkpoints = Checkpoints(run.folder.checkpoints)
    latest = checkpoints.latest()
    run_state = _run_state(latest, plan)
    stop = StopOnRequest()
    with _explained(batch_size), _quiet(), stop.listening():
        trainer = _trainer(run, plan, checkpoints, run_state, stop)
        with checkpoints.explaining():  # the log and trackers write too
            _take_steps(trainer, latest, settings.patience)
    steps = trainer.state.global_step
    has_ended = steps >= plan.schedule.steps or run_state.has_stopped_early(settings.patience)
    if stop.is_asked and not has_ended:
        raise Interrupted(f"stopped after step {steps} of {plan.schedule.steps}; all is kept")
    if machine.is_first_process():
        export(run, plan, checkpoints, run_state, steps)
    trainer.accelerator.wait_for_everyone()  # the others read the result that the first one writes
    return run.folder.result()


def memory_of(plan: TrainingPlan) -> Memory:
    """The estimated memory of the largest batch."""
    return memory_for(plan.config, plan.settings.method, plan.settings.training, plan.training)


def _run_state(latest: Path | None, plan: TrainingPlan) -> RunState:
    if latest is None:
        return RunState(data_digest=plan.data_digest)
    run_state = RunState.read(latest)
    if run_state.data_digest != plan.data_digest:
        raise RunFolderError(
            "the data have changed since the run was stopped, so it cannot go on; bring the old "
            "data back, or begin anew with --overwrite"
        )
    return run_state


def _trainer(
    run: Run,
    plan: TrainingPlan,
    checkpoints: Checkpoints,
    run_state: RunState,
    stop: StopOnRequest,
) -> AdapterTrainer:
    settings, training, schedule = plan.settings, plan.settings.training, plan.schedule
    # Before the model: making the arguments connects the processes, which decides on the device.
    arguments = training_arguments(settings, schedule, checkpoints.partial)
    model = load_base(
        plan.base.path, settings.method, resolved(training.precision), str(arguments.device)
    )
    if plan.parent:
        model = continue_adapter(model, plan.parent.folder, settings.seed, settings.method.dropout)
    elif settings.method.name != "full":
        model = add_adapter(model, settings.method, settings.seed)
    log = Log(run.folder.log, schedule, run_state)
    if machine.is_first_process():
        latest = checkpoints.latest()
        log.forget_after(step_of(latest) if latest else 0)
    callbacks: list[TrainerCallback] = [
        Clock(run_state),
        log,
        Bar(run.progress, run.say, schedule, run_state),
        AtTheEnd(),
        KeepBest(checkpoints, run_state, training.patience),
        stop,
        *tracker_callbacks(training, run.folder.tensorboard),
    ]
    return AdapterTrainer(
        model=model,
        args=arguments,
        schedule=schedule,
        rows=plan.training.rows,
        validation=plan.validation.rows,
        tokenizer=plan.renderer.tokenizer,
        checkpoints=checkpoints,
        run_state=run_state,
        callbacks=callbacks,
    )


def _take_steps(trainer: AdapterTrainer, latest: Path | None, patience: int) -> None:
    if latest is None:
        trainer.evaluate()  # step 0: what the base model does, which the best weights have to beat
        trainer.train()
    elif not trainer.run_state.has_stopped_early(patience):
        trainer.train(resume_from_checkpoint=str(latest))
    else:
        trainer.state.global_step = step_of(latest)


@contextmanager
def _explained(batch_size: int) -> Iterator[None]:
    """Turns what libraries raise for a lack of memory into a TrainingError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        raise TrainingError(
            f"the memory is not enough for batches of {batch_size} rows; lower [training] "
            "batch_size (and raise gradient_accumulation), set gradient_checkpointing = true, or "
            "lower [data] max_tokens; what was learnt up to the last checkpoint is kept"
        ) from error


def _is_about_memory(error: MemoryError | RuntimeError) -> bool:
    is_ours = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_ours or "can't allocate memory" in str(error) or "not enough memory" in str(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns off the log lines and progress bars of transformers within the block, which would break
    up ours.
    """
    earlier = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(earlier)
        if had_bars:
            transformers_logging.enable_progress_bar()
