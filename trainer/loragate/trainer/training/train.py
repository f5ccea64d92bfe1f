"""Training itself: from what was prepared to the best weights and a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from loragate.adapters.format.base_profile import tokenizer_hash
from loragate.trainer.errors import RunFolderError, TrainingError
from loragate.trainer.run.folder import RunFolder, RunResult, Verdict, write_whole
from loragate.trainer.settings.section import settled
from loragate.trainer.training import machine, processes
from loragate.trainer.training.adapter_trainer import AdapterTrainer
from loragate.trainer.training.arguments import training_arguments
from loragate.trainer.training.callbacks import Bar, Clock, KeepBest, Log, StopOnRequest
from loragate.trainer.training.checkpoints import Checkpoints, step_of
from loragate.trainer.training.curve import draw_curve
from loragate.trainer.training.finished import write_adapter, write_model
from loragate.trainer.training.journal import Journal
from loragate.trainer.training.memory import Memory, estimate_memory
from loragate.trainer.training.models import add_adapter, continue_adapter, load_base
from loragate.trainer.training.order import padding_share
from loragate.trainer.training.preparing import Prepared
from loragate.trainer.training.receipts import package_versions, weights_digest
from loragate.trainer.training.trackers import check_trackers, tracker_callbacks
from loragate.trainer.training.verdict import judge


class Interrupted(TrainingError):
    """Somebody asked the run to stop; what was learnt is in a checkpoint."""


def train(prepared: Prepared, folder: RunFolder, progress: Progress) -> RunResult:
    """Trains, or goes on from the newest checkpoint in the folder, to the end.

    Raises TrainingError (Interrupted after Ctrl-C) or RunFolderError; the checkpoints stay.
    """
    run = prepared.run
    check_trackers(run.training)
    memory_of(prepared).require(
        machine.free_memory_bytes(run.training.device), run.training.batch_size
    )
    torch.set_num_threads(settled(run.training.threads))
    checkpoints = Checkpoints(folder.checkpoints)
    latest = checkpoints.latest()
    journal = _journal(latest, prepared)
    stop = StopOnRequest()
    with _explained(run.training.batch_size), _quiet(), stop.listening():
        trainer = _trainer(prepared, folder, checkpoints, journal, progress, stop)
        with checkpoints.explaining():  # the log and trackers write too
            _run(trainer, latest, prepared)
    steps = trainer.state.global_step
    if stop.is_asked and steps < prepared.plan.steps and not _has_stopped_early(journal, prepared):
        raise Interrupted(f"stopped after step {steps} of {prepared.plan.steps}; all is kept")
    if processes.is_first():
        _finish(prepared, folder, checkpoints, journal, steps)
    trainer.accelerator.wait_for_everyone()
    return folder.result()


def memory_of(prepared: Prepared) -> Memory:
    """What its longest batch will take, by estimate."""
    run = prepared.run
    rows = prepared.training.rows
    return estimate_memory(
        prepared.config,
        run.method,
        run.training,
        longest_row=max(len(row.ids) for row in rows),
        supervised_share=prepared.training.supervised / prepared.training.tokens,
    )


def _journal(latest: Path | None, prepared: Prepared) -> Journal:
    if latest is None:
        return Journal(data_digest=prepared.data_digest)
    journal = Journal.read(latest)
    if journal.data_digest != prepared.data_digest:
        raise RunFolderError(
            "the data have changed since the run was stopped, so it cannot go on; bring the old "
            "data back, or begin anew with --overwrite"
        )
    return journal


def _trainer(
    prepared: Prepared,
    folder: RunFolder,
    checkpoints: Checkpoints,
    journal: Journal,
    progress: Progress,
    stop: StopOnRequest,
) -> AdapterTrainer:
    run = prepared.run
    training = run.training
    # The arguments come first: they start the processes' talk, which decides on the device.
    arguments = training_arguments(run, prepared.plan, checkpoints.partial)
    model = load_base(
        prepared.base.path, run.method, settled(training.precision), str(arguments.device)
    )
    if run.method.name != "full":
        model = (
            continue_adapter(model, prepared.origin.folder, run.seed, run.method.dropout)
            if prepared.origin
            else add_adapter(model, run.method, run.seed)
        )
    log = Log(folder.log, prepared.plan, journal)
    if processes.is_first():
        latest = checkpoints.latest()
        log.forget_after(step_of(latest) if latest else 0)
    callbacks: list[TrainerCallback] = [
        Clock(journal),
        log,
        Bar(progress, prepared.plan, journal),
        KeepBest(checkpoints, journal, training.patience),
        stop,
        *tracker_callbacks(training, folder.tensorboard),
    ]
    return AdapterTrainer(
        model=model,
        args=arguments,
        plan=prepared.plan,
        rows=prepared.training.rows,
        validation=prepared.validation.rows,
        tokenizer=prepared.renderer.tokenizer,
        checkpoints=checkpoints,
        journal=journal,
        callbacks=callbacks,
    )


def _run(trainer: AdapterTrainer, latest: Path | None, prepared: Prepared) -> None:
    if latest is None:
        trainer.evaluate()
        trainer.train()
    elif not _has_stopped_early(trainer.journal, prepared):
        trainer.train(resume_from_checkpoint=str(latest))
    else:
        trainer.state.global_step = step_of(latest)


def _has_stopped_early(journal: Journal, prepared: Prepared) -> bool:
    patience = prepared.run.training.patience
    return bool(patience) and journal.since_best >= patience


def _finish(
    prepared: Prepared, folder: RunFolder, checkpoints: Checkpoints, journal: Journal, steps: int
) -> None:
    """Leaves the best weights, the curve and the result, and no checkpoints."""
    method, best = prepared.run.method, checkpoints.best(journal.best.step)
    with checkpoints.explaining():
        if method.name == "full":
            write_model(best, folder.adapter, prepared.base)
        else:
            write_adapter(best, folder.adapter, method, prepared.base)
    verdict = judge(journal.validations, steps)
    write_whole(folder.curve, draw_curve(list(folder.steps()), verdict))
    folder.write_result(_result(prepared, folder, journal, verdict, steps))
    checkpoints.clear()


def _result(
    prepared: Prepared, folder: RunFolder, journal: Journal, verdict: Verdict, steps: int
) -> RunResult:
    run, plan = prepared.run, prepared.plan
    return RunResult(
        method=run.method.name,
        verdict=verdict,
        metrics=_metrics(prepared, folder, journal, steps),
        steps=steps,
        epochs=plan.epochs(steps),
        seconds=journal.seconds,
        training_seconds=journal.training_seconds,
        training_tokens=plan.tokens[steps],
        supervised_tokens=plan.supervised[steps],
        peak_memory_bytes=machine.peak_memory_bytes(run.training.device),
        seed=run.seed,
        data_digest=prepared.data_digest,
        base_model=prepared.base.name,
        base_model_digest=prepared.base.digest,
        adapter_digest=weights_digest(folder.adapter),
        continued_from=str(prepared.origin.version) if prepared.origin else "",
        chat_template_hash=prepared.renderer.template_hash(),
        tokenizer_hash=tokenizer_hash(prepared.base.path),
        packages=package_versions(),
        machine=machine.describe(),
    )


def _metrics(
    prepared: Prepared, folder: RunFolder, journal: Journal, steps: int
) -> dict[str, float]:
    """Losses in nats a supervised token."""
    plan, seconds = prepared.plan, journal.training_seconds
    losses = [line["loss"] for line in folder.steps() if "loss" in line]
    lengths = [len(row.ids) for row in prepared.training.rows]
    return {
        "validation_loss": journal.best.loss,
        "training_loss": losses[-1] if losses else float("nan"),
        "tokens_per_second": plan.tokens[steps] / seconds if seconds else 0.0,
        "padding_share": padding_share(plan.order, lengths, plan.batch_size),
        "training_rows": len(prepared.training.rows),
        "validation_rows": len(prepared.validation.rows),
        "replayed_rows": prepared.replayed,
        "too_long_rows": prepared.training.too_long + prepared.validation.too_long,
    }


@contextmanager
def _explained(batch_size: int) -> Iterator[None]:
    """Turns a lack of memory, which every library says in its own way, into a sentence."""
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
    """Keeps transformers' notes from tearing the progress bar."""
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
