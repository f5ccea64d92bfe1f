"""What happens beside the steps: time, the log, the progress bar, stopping early and on request."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from loragate.trainer.training import processes
from loragate.trainer.training.checkpoints import Checkpoints
from loragate.trainer.training.journal import Journal
from loragate.trainer.training.plan import Plan


class Clock(TrainerCallback):
    """Adds the time in steps, and of the whole start, to the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._mark = self._step_began = time.perf_counter()

    def on_step_begin(self, *_args: object, **_kwargs: object) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        now = time.perf_counter()
        self._journal.training_seconds += now - self._step_began
        self._add_until(now)

    def on_train_end(self, *_args: object, **_kwargs: object) -> None:
        self._add_until(time.perf_counter())

    def _add_until(self, now: float) -> None:
        self._journal.seconds += now - self._mark
        self._mark = now


class Log(TrainerCallback):
    """Writes log.jsonl, a line a report. A run that goes on drops the lines that it repeats."""

    def __init__(self, path: Path, plan: Plan, journal: Journal) -> None:
        self._path = path
        self._plan = plan
        self._journal = journal

    def forget_after(self, step: int) -> None:
        """For a run that goes on from this step."""
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
        line = {"step": state.global_step, "epoch": self._plan.epochs(state.global_step)}
        if "eval_loss" in logs:
            line["validation_loss"] = logs["eval_loss"]
        elif "loss" in logs:
            line |= {key: logs[key] for key in ("loss", "learning_rate", "grad_norm")}
            line["tokens"] = self._plan.tokens[state.global_step]
            line["seconds"] = self._journal.training_seconds
        else:
            return
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


class Bar(TrainerCallback):
    """Shows loss, tokens per second and the time left."""

    def __init__(self, progress: Progress, plan: Plan, journal: Journal) -> None:
        self._progress = progress
        self._plan = plan
        self._journal = journal
        self._task = progress.add_task("Train", total=plan.tokens[-1], loss="", rate="")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_kwargs: object,
    ) -> None:
        tokens = self._plan.tokens[state.global_step]
        rate = tokens / max(self._journal.training_seconds, 1e-9)
        self._progress.update(
            self._task,
            completed=tokens,
            description=f"Step {state.global_step}/{self._plan.steps}",
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
            self._progress.console.print(
                f"step {state.global_step:5d}  validation loss {logs['eval_loss']:.4f}"
            )


class KeepBest(TrainerCallback):
    """Keeps the weights with the lowest validation loss, and stops a run that only gets worse."""

    def __init__(self, checkpoints: Checkpoints, journal: Journal, patience: int) -> None:
        self._checkpoints = checkpoints
        self._journal = journal
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
        latest = self._journal.validations[-1]
        if self._journal.best == latest and state.is_world_process_zero:
            self._checkpoints.keep_best(latest.step, lambda folder: save_weights(model, folder))
        if self._patience and self._journal.since_best >= self._patience:
            control.should_training_stop = True


@dataclass
class StopOnRequest(TrainerCallback):
    """Ctrl-C and SIGTERM: the step under way ends, a checkpoint is written, the run stops.

    A second one ends the process at once, as without us.
    """

    is_asked: bool = field(default=False, init=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over for the block; in the main thread only."""
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _frame: FrameType | None) -> None:
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
        self.is_asked = processes.any_of(self.is_asked)
        if self.is_asked:
            control.should_save = True
            control.should_training_stop = True


def save_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """An adapter in PEFT's form, or a whole model."""
    model.save_pretrained(str(folder), safe_serialization=True)
