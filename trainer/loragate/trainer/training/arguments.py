"""A run's settings as the arguments of TRL's trainer."""

import math
from pathlib import Path

from trl.trainer.sft_config import SFTConfig

from loragate.trainer.run.file import RunFile
from loragate.trainer.settings.section import settled
from loragate.trainer.training.plan import Plan


def training_arguments(run: RunFile, plan: Plan, output: Path) -> SFTConfig:
    """`output` is where transformers writes its checkpoints. Nothing in the run is "auto"."""
    training = run.training
    evaluate_every = settled(training.evaluate_every)
    return SFTConfig(
        output_dir=str(output),
        seed=run.seed,
        data_seed=run.seed,
        max_steps=plan.steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=settled(training.learning_rate),
        lr_scheduler_type=(
            "constant_with_warmup" if training.schedule == "constant" else training.schedule
        ),
        warmup_steps=math.ceil(training.warmup_share * plan.steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        optim="adamw_torch_fused",
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=settled(training.save_every),
        logging_steps=settled(training.log_every),
        # A loss that is no number stops the run instead of being averaged away.
        logging_nan_inf_filter=False,
        bf16=training.precision == "bf16",
        use_cpu=training.device == "cpu",
        gradient_checkpointing=training.gradient_checkpointing,
        # Rows are ready: nothing is to be tokenised, cut or filtered.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=training.device == "cuda",
        disable_tqdm=True,
        report_to=[name for name in training.trackers if name != "tensorboard"],
        run_name=Path(run.folder).name,
    )
