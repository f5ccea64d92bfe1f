"""TRL's trainer, fed with encoded rows in a fixed order, with a loss and checkpoints of our own.

On a CPU the loss is computed here, with the vocabulary's layer only where a token is learnt. For a
small model that layer is the widest by far; TRL computes it in tiles that save a GPU's memory, for
every position, and once more in the backward pass.
"""

import inspect
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from loragate.adapters.rendering.renderer import IGNORED
from loragate.trainer.errors import TrainingError
from loragate.trainer.run.file import RunFile
from loragate.trainer.settings import resolved
from loragate.trainer.training.checkpoints import Checkpoints, RunState, Validation
from loragate.trainer.training.encoding import EncodedRow
from loragate.trainer.training.models import trained_parameters
from loragate.trainer.training.schedule import FixedOrder, Schedule

_PROBE = (1, 2, 3)  # token ids


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the last layer's product and nothing else.

    Measured: some families scale or cap them, each under another name in its configuration. The
    model's mode is restored.
    """
    head = cast(nn.Module | None, model.get_output_embeddings())
    if head is None or model.base_model is model:
        return False
    was_training = model.training
    model.eval()
    try:
        # As in training: an adapter in float32 on a base in bf16 computes only so.
        is_mixed = model.dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=is_mixed):
            ids = torch.tensor([_PROBE], device=model.device)
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            ours = cast(Tensor, head(hidden)).float()
            theirs = cast(Tensor, model(input_ids=ids, use_cache=False).logits).float()
    finally:
        model.train(was_training)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def add_supervised_head(model: PreTrainedModel) -> None:
    """Have `model(input_ids=…, labels=…, summed_loss=True)` return the loss of all labels, summed.

    Both are int64 of (rows, length), a row's padding comes last, and labels that are not learnt are
    `IGNORED`. The sum is a float32 scalar, in nats. It goes through `forward`, so that wrappers
    which synchronise gradients see it.
    """
    original = model.forward
    loss = _summed_loss if has_plain_head(model) else _summed_loss_of_logits(original)

    def forward(
        self: PreTrainedModel, *args: object, summed_loss: bool = False, **kwargs: Any
    ) -> object:
        if not summed_loss:
            return original(*args, **kwargs)
        return loss(self, kwargs["input_ids"], kwargs["labels"])

    model.forward = types.MethodType(forward, model)


def _summed_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    # No attention mask: padding comes last, so under causal attention no token sees any of it.
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:].flatten()
    learnt = (targets != IGNORED).nonzero().flatten()
    states = hidden[:, :-1].reshape(-1, hidden.size(-1)).index_select(0, learnt)
    logits = cast(nn.Module, model.get_output_embeddings())(states)
    return cross_entropy(logits.float(), targets[learnt], reduction="sum")


def _summed_loss_of_logits(
    original: Callable[..., Any],
) -> Callable[[PreTrainedModel, Tensor, Tensor], Tensor]:
    """As `_summed_loss`, of the logits that the model itself makes of its last layer: at the places
    where any row has something to learn, if it can be told them.
    """
    takes_places = "logits_to_keep" in inspect.signature(original).parameters

    def loss(_model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        places = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
        if takes_places:
            logits = original(input_ids=input_ids, use_cache=False, logits_to_keep=places).logits
        else:
            logits = original(input_ids=input_ids, use_cache=False).logits[:, places]
        targets = labels[:, 1:][:, places].flatten()
        return cross_entropy(
            logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
        )

    return loss


def training_arguments(settings: RunFile, schedule: Schedule, output: Path) -> SFTConfig:
    """`output` is where transformers writes its checkpoints. Nothing in `settings` is "auto"."""
    training = settings.training
    evaluate_every = resolved(training.evaluate_every)
    return SFTConfig(
        output_dir=str(output),
        seed=settings.seed,
        data_seed=settings.seed,
        max_steps=schedule.steps,
        per_device_train_batch_size=resolved(training.batch_size),
        per_device_eval_batch_size=resolved(training.batch_size),
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=resolved(training.learning_rate),
        lr_scheduler_type=(
            "constant_with_warmup" if training.schedule == "constant" else training.schedule
        ),
        warmup_steps=math.ceil(training.warmup_share * schedule.steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        optim="adamw_torch_fused",
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=resolved(training.save_every),
        logging_steps=resolved(training.log_every),
        # A loss that is no number stops the run instead of being averaged away.
        logging_nan_inf_filter=False,
        bf16=training.precision == "bf16",
        use_cpu=training.device == "cpu",
        gradient_checkpointing=training.gradient_checkpointing,
        # The rows are ready: nothing is to be tokenised, cut or filtered.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=training.device == "cuda",
        disable_tqdm=True,
        report_to=[name for name in training.trackers if name != "tensorboard"],
        run_name=Path(settings.folder).name,
    )


class AdapterTrainer(SFTTrainer):
    """Trains the rows in the schedule's order. The validation loss is a mean over supervised
    tokens, and checkpoints appear whole or not at all.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        args: SFTConfig,
        schedule: Schedule,
        rows: Sequence[EncodedRow],
        validation: Sequence[EncodedRow],
        tokenizer: PreTrainedTokenizerBase,
        checkpoints: Checkpoints,
        run_state: RunState,
        callbacks: list[TrainerCallback],
    ) -> None:
        learnt = [(each, each.data) for each in trained_parameters(model)]
        super().__init__(
            model=model,
            args=args,
            train_dataset=_dataset(rows),
            # TRL wants one where a run validates; `evaluate` reads the rows themselves.
            eval_dataset=_dataset(validation[:1]),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        # TRL casts an adapter on a quantised base to bf16, which would swallow small steps.
        for parameter, as_it_was in learnt:
            parameter.data = as_it_was
        self.remove_callback(PrinterCallback)
        self.schedule = schedule
        self.run_state = run_state
        self._checkpoints = checkpoints
        self._validation = sorted(validation, key=lambda row: -len(row.ids))
        causal = cast(
            PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model
        )
        # TRL's reads the logits' scales from names that it knows, and not all families have these.
        self._has_own_loss = args.device.type == "cpu" or not has_plain_head(causal)
        if self._has_own_loss:
            add_supervised_head(causal)

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        return FixedOrder(self.schedule.order)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Nats a supervised token of the step, over all batches and devices in it: a scalar.

        `input_ids` and `labels` are int64 of (rows, length).
        """
        if not self._has_own_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        summed = model(input_ids=inputs["input_ids"], labels=inputs["labels"], summed_loss=True)
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss = summed / num_items_in_batch
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss

    def evaluate(self, *_args: object, **_kwargs: object) -> dict[str, float]:
        """`eval_loss` in nats a supervised token over all validation rows, kept in the run state.

        Raises TrainingError where it is no number.
        """
        model = cast(nn.Module, self.model)
        was_training = model.training
        model.eval()
        nats, tokens = self._validation_sums(model)
        model.train(was_training)
        loss = nats / tokens
        self.run_state.validations.append(Validation(self.state.global_step, loss))
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Raises TrainingError where the loss is no number any more."""
        for key in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(key, 0.0)):
                raise TrainingError(
                    f"the loss is {logs[key]} at step {self.state.global_step}, so the weights are "
                    "lost; lower [training] learning_rate, or train in [training] precision = "
                    "'fp32'"
                )
        # Not SFTTrainer's, which adds its own metrics and forgets them in a validation.
        self._metrics["train"].clear()
        Trainer.log(self, logs, start_time)

    def _validation_sums(self, model: nn.Module) -> tuple[float, int]:
        """Nats and tokens over all validation rows; each process takes its share of them."""
        batch_size, processes = self.args.eval_batch_size, self.accelerator.num_processes
        own = self._validation[self.accelerator.process_index :: processes]
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            inputs = self._prepare_inputs(self.data_collator([_features(row) for row in batch]))
            with torch.no_grad(), self.accelerator.autocast():
                sums[0] += self._summed_loss(model, inputs)
            sums[1] += sum(row.supervised for row in batch)
        nats, tokens = cast(Tensor, self.accelerator.reduce(sums)).tolist()
        return nats, int(tokens)

    def _summed_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if self._has_own_loss:
            return model(input_ids=inputs["input_ids"], labels=inputs["labels"], summed_loss=True)
        return -model(**inputs, fused_lm_head=True).log_probs.sum()

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Writes into a hidden folder, which is renamed when all of it is on the disk."""
        if self.is_world_process_zero():
            self._checkpoints.begin()
        # All processes write into the folder, so none may start before it is empty.
        self.accelerator.wait_for_everyone()
        # Not SFTTrainer's, which writes a model card beside each.
        with self._checkpoints.explaining():
            Trainer._save_checkpoint(self, model, trial)
        # The rename must come after the last process has written its part.
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self._checkpoints.commit(self.state.global_step, self.run_state)


def _features(row: EncodedRow) -> dict[str, list[int]]:
    return {"input_ids": list(row.ids), "labels": list(row.labels)}


def _dataset(rows: Sequence[EncodedRow]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}
    )
