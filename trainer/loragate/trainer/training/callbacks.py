"""Callbacks of the trainer: time, log, progress bar, trackers, best weights, stopping."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import msgspec
from peft import PeftModel
from rich.progress import Progress
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from loragate.trainer.errors import TrainingError
from loragate.trainer.settings import TrainingSettings
from loragate.trainer.training import machine
from loragate.trainer.training.checkpoints import Checkpoints, RunState
from loragate.trainer.training.schedule import Schedule


def check_trackers(training: TrainingSettings) -> None:
    """Raises TrainingError for a tracker that is not installed."""
    for tracker in training.trackers:
        if find_spec(tracker) is None:
            raise TrainingError(
                f"[training] trackers names {tracker!r}, which is not installed; "
                f"`pip install {tracker}`, or leave it out"
            )


def tracker_callbacks(training: TrainingSettings, folder: Path) -> list[TrainerCallback]:
    """TensorBoard's callback, which writes into `folder`. transformers makes the others itself, by
    name.
    """
    if "tensorboard" not in training.trackers:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(folder)))]


class Clock(TrainerCallback):
    """Adds to the run's state the seconds in steps, and all seconds since this was made."""

    def __init__(self, run_state: RunState) -> None:
        self._run_state = run_state
        self._mark = self._step_began = time.perf_counter()

    def on_step_begin(self, *_args: object, **_kwargs: object) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        now = time.perf_counter()
        self._run_state.training_seconds += now - self._step_began
        self._add_until(now)

    def on_train_end(self, *_args: object, **_kwargs: object) -> None:
        self._add_until(time.perf_counter())

    def _add_until(self, now: float) -> None:
        self._run_state.seconds += now - self._mark
        self._mark = now


class Log(TrainerCallback):
    """Appends a JSON line to log.jsonl for each report of the trainer and each validation."""

    def __init__(self, path: Path, schedule: Schedule, run_state: RunState) -> None:
        self._path = path
        self._schedule = schedule
        self._run_state = run_state

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps, which a run that goes on from this one writes again."""
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        kept = [line for line in lines if msgspec.json.decode(line)["step"] <= step]
        self._path.write_bytes(b"".join(line + b"\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_kwargs: object,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, "epoch": self._schedule.epochs(state.global_step)}
        if "eval_loss" in logs:
            line["validation_loss"] = logs["eval_loss"]
        elif "loss" in logs:
            line |= {key: logs[key] for key in ("loss", "learning_rate", "grad_norm")}
            line["tokens"] = self._schedule.tokens[state.global_step]
            line["seconds"] = self._run_state.training_seconds
        else:
            return
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


class Bar(TrainerCallback):
    """Shows step, loss, tokens per second and the time left, and says each validation loss."""

    def __init__(
        self,
        progress: Progress,
        say: Callable[[str], None],
        schedule: Schedule,
        run_state: RunState,
    ) -> None:
        self._progress = progress
        self._say = say
        self._schedule = schedule
        self._run_state = run_state
        self._task = progress.add_task("Train", total=schedule.tokens[-1], loss="", rate="")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_kwargs: object,
    ) -> None:
        tokens = self._schedule.tokens[state.global_step]
        rate = tokens / max(self._run_state.training_seconds, 1e-9)
        self._progress.update(
            self._task,
            completed=tokens,
            description=f"Step {state.global_step}/{self._schedule.steps}",
            rate=f"{rate:.0f} tokens/s",
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_kwargs: object,
    ) -> None:
        if logs and "loss" in logs:
            self._progress.update(self._task, loss=f"loss {logs['loss']:.3f}")
        if logs and "eval_loss" in logs:
            self._say(f"step {state.global_step:5d}  validation loss {logs['eval_loss']:.4f}")


class AtTheEnd(TrainerCallback):
    """Has the last step reported and validated, however often these are done."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_kwargs: object,
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = control.should_evaluate = True


class KeepBest(TrainerCallback):
    """Saves the weights with the lowest validation loss, and stops the run after `patience`
    validations without a lower one, unless that is 0.
    """

    def __init__(self, checkpoints: Checkpoints, run_state: RunState, patience: int) -> None:
        self._checkpoints = checkpoints
        self._run_state = run_state
        self._patience = patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | PeftModel | None = None,
        **_kwargs: object,
    ) -> None:
        assert model is not None
        latest = self._run_state.validations[-1]
        if self._run_state.best == latest and state.is_world_process_zero:
            self._checkpoints.keep_best(latest.step, lambda folder: save_weights(model, folder))
        if self._run_state.has_stopped_early(self._patience):
            control.should_training_stop = True


@dataclass
class StopOnRequest(TrainerCallback):
    """Stops the run on SIGINT (Ctrl-C) or SIGTERM, after the step under way and a checkpoint.

    A second signal goes to the handler that was there before, which ends the process.
    """

    is_asked: bool = field(default=False, init=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the two signals within the block, and restores the earlier handlers after it.
        Python allows this in the main thread only.
        """
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _frame: FrameType | None) -> None:
            # Only a flag: a handler may run in the middle of a write or of an optimizer step.
            self.is_asked = True
            signal.signal(number, earlier[signal.Signals(number)])

        for number in earlier:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_kwargs: object,
    ) -> None:
        # All processes stop at the same step, or those that go on would wait for ever.
        self.is_asked = machine.any_process(self.is_asked)
        if self.is_asked:
            control.should_save = True
            control.should_training_stop = True


def save_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Saves an adapter in PEFT's form, or a whole model, as safetensors."""
    model.save_pretrained(str(folder), safe_serialization=True)
