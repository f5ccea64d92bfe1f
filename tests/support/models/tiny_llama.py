"""A Llama of two layers, and real PEFT adapters of it, each of a second's work at most."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loragate.adapters.base_models.preparation import BaseModel
from support.models.tokenizers import word_tokenizer

TARGETS = ("q_proj", "down_proj")
LAYERS = 2
LABELS = ("billing", "outage", "moving")
WORDS = (
    *("<user>", "<assistant>", "<system>", "my", "bill", "is", "wrong", "the"),
    *("light", "went", "off", "I", "have", "a", "new", "flat", "please", "help", "."),
)


def tiny_llama(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    usual = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # so that it has opinions, and a wrong scale changes them
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**usual | config))


def write_base(folder: Path, **how_to_save: Any) -> BaseModel:
    """With a tokenizer that knows `WORDS` and `LABELS`."""
    tiny_llama().save_pretrained(folder, **how_to_save)
    word_tokenizer((*WORDS, *LABELS)).save_pretrained(folder)
    return BaseModel("tiny", folder, "sha256:base")


def adapt(
    model: LlamaForCausalLM | None = None,
    *,
    seed: int = 1,
    strength: float = 0.1,
    prepare: Callable[[LlamaForCausalLM, LoraConfig], None] | None = None,
    **config: Any,
) -> PeftModel:
    """A model with LoRA layers, as after some training: no matrix is zero."""
    model = model or tiny_llama()
    lora = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)} | config)
    if prepare is not None:
        prepare(model, lora)
    adapted = get_peft_model(model, lora)
    assert isinstance(adapted, PeftModel)
    torch.manual_seed(seed)
    train(adapted, strength)
    return adapted


def train(adapted: PeftModel, strength: float = 0.1) -> None:
    """Moves every trainable number, as training would."""
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * strength)


def save(adapted: PeftModel, folder: Path, **how_to_save: Any) -> Path:
    adapted.save_pretrained(str(folder), **how_to_save)
    return folder
