"""[training]: how the weights are learnt."""

from typing import Literal

from loragate.trainer.settings.section import Auto, Count, Positive, Section, Share, Whole

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Precision = Literal["fp32", "bf16"]


class TrainingSettings(Section, frozen=True):
    """A step is one update of the weights, from `batch_size * gradient_accumulation` rows a device.

    `max_steps` 0: as many as the epochs take.
    """

    epochs: Positive = 3.0
    max_steps: Whole = 0
    batch_size: Count = 8
    gradient_accumulation: Count = 1
    # "auto": 2e-4 for an adapter, 2e-5 for the whole model.
    learning_rate: Positive | Auto = "auto"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Share = 0.05
    weight_decay: float = 0.0
    max_gradient_norm: Positive = 1.0
    # Validation every so many steps. "auto": ten times in the run, at least every epoch.
    evaluate_every: Count | Auto = "auto"
    # Stop after so many validations without a new minimum. 0: never.
    patience: Whole = 3
    # A checkpoint every so many steps, to resume from. "auto": at every validation.
    save_every: Count | Auto = "auto"
    log_every: Count | Auto = "auto"
    # "auto": the faster one, by a short measurement on this machine.
    precision: Precision | Auto = "auto"
    # CPU threads. "auto": the cores that this process may use.
    threads: Count | Auto = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Rows of like length share a batch, so little of it is padding.
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    trackers: tuple[Tracker, ...] = ("tensorboard",)
