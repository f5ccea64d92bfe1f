"""Puts a value in the place of every "auto"; what comes out is written beside the run.

In two parts, since how often to validate depends on how many rows there are, and which rows there
are on the longest that is allowed.
"""

import math
from pathlib import Path

import msgspec
from transformers import PretrainedConfig

from loragate.trainer.errors import RunFileError
from loragate.trainer.run.file import RunFile
from loragate.trainer.run.paths import with_absolute_paths
from loragate.trainer.settings.data import DataSettings
from loragate.trainer.settings.method import PROJECTIONS, MethodSettings
from loragate.trainer.settings.training import TrainingSettings
from loragate.trainer.training import machine
from loragate.trainer.training.memory import mlp_width
from loragate.trainer.training.origin import Origin, method_of
from loragate.trainer.training.plan import steps_of

_LONGEST_BY_DEFAULT = 1024
_VALIDATIONS = 10
_TYPICAL_ROW = 96  # tokens; for the measurement of precisions only


def resolve_model(
    run: RunFile, root: Path, config: PretrainedConfig, origin: Origin | None
) -> RunFile:
    """All but what depends on the rows. Paths become absolute; `root` is the run file's folder."""
    method = _method(method_of(origin, run.method) if origin else run.method)
    run = with_absolute_paths(run, root)
    return msgspec.structs.replace(
        run,
        data=msgspec.structs.replace(run.data, max_tokens=longest_row(run.data, config)),
        method=method,
        training=_training(run.training, method, config),
    )


def resolve_schedule(run: RunFile, rows: int, processes: int) -> RunFile:
    """The rest, from the number of training rows."""
    training = run.training
    steps = steps_of(training, rows, processes)
    per_epoch = math.ceil(steps / max(1.0, training.epochs)) if not training.max_steps else steps
    evaluate_every = training.evaluate_every
    if evaluate_every == "auto":
        evaluate_every = max(1, min(math.ceil(steps / _VALIDATIONS), per_epoch))
    save_every = evaluate_every if training.save_every == "auto" else training.save_every
    log_every = max(1, min(10, steps // 20)) if training.log_every == "auto" else training.log_every
    return msgspec.structs.replace(
        run,
        training=msgspec.structs.replace(
            training, evaluate_every=evaluate_every, save_every=save_every, log_every=log_every
        ),
    )


def _method(method: MethodSettings) -> MethodSettings:
    rank = 16 if method.rank == "auto" else method.rank
    alpha = float(rank if method.name == "rslora" else 2 * rank)
    return msgspec.structs.replace(
        method,
        rank=rank,
        alpha=alpha if method.alpha == "auto" else method.alpha,
        target_modules=(PROJECTIONS if method.target_modules == "auto" else method.target_modules),
    )


def _training(
    training: TrainingSettings, method: MethodSettings, config: PretrainedConfig
) -> TrainingSettings:
    device = machine.device(training)
    learning_rate = training.learning_rate
    if learning_rate == "auto":
        learning_rate = 2e-5 if method.name == "full" else 2e-4
    precision = training.precision
    if precision == "auto":
        text = config.get_text_config()
        precision = machine.faster_precision(
            device,
            training.batch_size * _TYPICAL_ROW,
            text.hidden_size,
            mlp_width(text),
        )
    return msgspec.structs.replace(
        training,
        device=device,
        threads=machine.threads() if training.threads == "auto" else training.threads,
        learning_rate=learning_rate,
        precision=precision,
    )


def template_of(run: RunFile, root: Path) -> str | None:
    """The chat template that replaces the model's own, if the run has one. Raises RunFileError."""
    if not run.model.chat_template:
        return None
    path = root / run.model.chat_template
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise RunFileError(f"[model] chat_template: {path}: {error.strerror}") from None


def longest_row(data: DataSettings, config: PretrainedConfig) -> int:
    """The limit in tokens."""
    if data.max_tokens != "auto":
        return data.max_tokens
    made_for = getattr(config.get_text_config(), "max_position_embeddings", _LONGEST_BY_DEFAULT)
    return min(int(made_for), _LONGEST_BY_DEFAULT)
