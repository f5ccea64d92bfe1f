"""TRL's trainer, fed with rows that are ready, in an order and with checkpoints of our own."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from loragate.trainer.errors import TrainingError
from loragate.trainer.training.checkpoints import Checkpoints
from loragate.trainer.training.journal import Journal, Validation
from loragate.trainer.training.models import trained_parameters
from loragate.trainer.training.order import FixedOrder
from loragate.trainer.training.plan import Plan
from loragate.trainer.training.rows import IGNORED, Row
from loragate.trainer.training.supervised_head import add_supervised_head, has_plain_head


class AdapterTrainer(SFTTrainer):
    """Trains by a plan, validates by the token, and keeps checkpoints that are whole or absent."""

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        args: SFTConfig,
        plan: Plan,
        rows: Sequence[Row],
        validation: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        checkpoints: Checkpoints,
        journal: Journal,
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
        self.plan = plan
        self.journal = journal
        self._checkpoints = checkpoints
        self._validation = sorted(validation, key=lambda row: -len(row.ids))
        causal = cast(
            PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model
        )
        self._has_own_loss = args.device.type == "cpu" and has_plain_head(causal)
        if self._has_own_loss:
            add_supervised_head(causal)

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        return FixedOrder(self.plan.order)

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
        """`eval_loss` in nats a supervised token, over all validation rows; noted in the journal.

        Raises TrainingError where it is no number.
        """
        model = cast(nn.Module, self.model)
        was_training = model.training
        model.eval()
        nats, tokens = self._validation_sums(model)
        model.train(was_training)
        loss = nats / tokens
        self.journal.validations.append(Validation(self.state.global_step, loss))
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
        """Into a hidden folder first, which gets its name when all is on the disk."""
        if self.is_world_process_zero():
            self._checkpoints.begin()
        self.accelerator.wait_for_everyone()
        # Not SFTTrainer's, which writes a model card beside each.
        with self._checkpoints.explaining():
            Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self._checkpoints.commit(self.state.global_step, self.journal)


def _features(row: Row) -> dict[str, list[int]]:
    return {"input_ids": list(row.ids), "labels": list(row.labels)}


def _dataset(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}
    )
