"""A base model of two layers, adapters on it, and a finished run, all real and made in a moment."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.base_profile import template_hash, tokenizer_hash
from loragate.trainer.data.example import Example, Message
from loragate.trainer.data.splits import write_split_folder
from loragate.trainer.run.file import parse_run_file
from loragate.trainer.run.folder import FitDiagnosis, RunFolder, RunResult

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LABELS = ("billing", "outage", "moving")
WORDS = (
    *("<unk>", "</s>", "<user>", "<assistant>", "<system>", "my", "bill", "is", "wrong", "the"),
    *("light", "went", "off", "I", "have", "a", "new", "flat", "please", "help", "."),
)


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS) + len(LABELS),
        tie_word_embeddings=False,
        initializer_range=0.2,  # so that the model has opinions, and a wrong scale changes them
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def write_base(folder: Path, **how_to_save: Any) -> BaseModel:
    tiny_llama().save_pretrained(folder, **how_to_save)
    words = {word: index for index, word in enumerate((*WORDS, *LABELS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return BaseModel("tiny", folder, "sha256:" + "b" * 64)


def write_adapter(folder: Path, *, seed: int = 1, **config: Any) -> Path:
    """A LoRA adapter as after much training: no matrix is zero, and answers change."""
    lora = LoraConfig(
        **{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]} | config
    )
    adapted = get_peft_model(tiny_llama(), lora)
    assert isinstance(adapted, PeftModel)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(str(folder))
    return folder


def example(question: str, label: str) -> Example:
    return Example((Message("user", question), Message("assistant", label)), label=label)


def examples() -> list[Example]:
    questions = {
        "billing": "my bill is wrong",
        "outage": "the light went off",
        "moving": "I have a new flat",
    }
    return [
        example(f"{question} {'please ' * extra}help .", label)
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
        "chat_template_hash": template_hash(TEMPLATE),
        "tokenizer_hash": tokenizer_hash(base.path),
        "packages": {"torch": "2.13.0", "peft": "0.21.2"},
        "machine": "a test",
    }
    return RunResult(**given | changes)
