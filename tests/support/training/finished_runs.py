"""A base model of two layers, adapters on it, and a finished run, all real and made in a moment."""

from pathlib import Path
from typing import Any

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.base_profile import template_hash, tokenizer_hash
from loragate.trainer.data.example import Example
from loragate.trainer.data.splits import write_split_folder
from loragate.trainer.run.file import parse_run_file
from loragate.trainer.run.folder import FitDiagnosis, RunFolder, RunResult
from support.models.tiny_llama import adapt, save
from support.models.tokenizers import WORD_TURNS
from support.training.examples import example


def write_adapter(folder: Path, seed: int = 1, **config: Any) -> Path:
    """As after much training: answers change."""
    lora: dict[str, Any] = {"r": 8, "lora_alpha": 16, **config}
    return save(adapt(seed=seed, strength=0.3, **lora), folder)


def examples() -> list[Example]:
    questions = {
        "billing": "my bill is wrong",
        "outage": "the light went off",
        "moving": "I have a new flat",
    }
    return [
        example(f"{question} {'please ' * extra}help .", label, label=label)
        for extra in range(4)
        for label, question in questions.items()
    ]


def write_run(root: Path, base: BaseModel, toml: str = "", **result: Any) -> RunFolder:
    """A run that is complete, its data and adapter included; `toml` is added to its settings."""
    rows = tuple(examples())
    splits = write_split_folder(
        root / "splits", {"train": rows[:6], "validation": rows[6:9], "test": rows[9:]}, {}
    )
    text = f'[data]\nsplits = "{root / "splits"}"\n[model]\nbase = "{base.path}"\n{toml}'
    run = RunFolder(root / "run")
    write_adapter(run.adapter)
    settings = parse_run_file(text, root / "run.toml")
    run.run_file.write_text(text)
    run.resolved_file.write_text(settings.to_toml())
    run.write_result(_result(base, splits.digest, result))
    return run


def _result(base: BaseModel, data_digest: str, changes: dict[str, Any]) -> RunResult:
    diagnosis = FitDiagnosis(
        fit="well fitted",
        sentence="The validation loss fell to the end.",
        best_step=10,
        best_validation_loss=0.5,
        first_validation_loss=2.0,
        last_validation_loss=0.5,
    )
    given: dict[str, Any] = {
        "method": "lora",
        "diagnosis": diagnosis,
        "metrics": {"validation_loss": 0.5},
        "steps": 10,
        "epochs": 1.0,
        "seconds": 3.0,
        "training_seconds": 2.0,
        "training_tokens": 100,
        "supervised_tokens": 20,
        "peak_memory_bytes": 1 << 20,
        "seed": 7,
        "data_digest": data_digest,
        "base_model": base.name,
        "base_model_digest": base.digest,
        "adapter_digest": "a" * 64,
        "continued_from": "",
        "chat_template_hash": template_hash(WORD_TURNS),
        "tokenizer_hash": tokenizer_hash(base.path),
        "packages": {"torch": "2.13.0", "peft": "0.21.2"},
        "machine": "a test",
    }
    return RunResult(**given | changes)
