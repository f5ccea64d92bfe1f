"""Real PEFT adapters of a tiny Llama, each of a second's work at most."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loragate.adapters.base_models.preparation import BaseModel

TEMPLATE = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
TARGETS = ("q_proj", "down_proj")
LAYERS = 2


def tiny_llama(width: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def write_base(folder: Path, **how_to_save: Any) -> BaseModel:
    tiny_llama().save_pretrained(folder, **how_to_save)
    words = {"<unk>": 0, "</s>": 1, "hello": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return BaseModel("tiny", folder, "sha256:base")


def adapt(
    *,
    rank: int = 4,
    model: LlamaForCausalLM | None = None,
    prepare: Callable[[LlamaForCausalLM, LoraConfig], None] | None = None,
    **config: Any,
) -> PeftModel:
    """A model with LoRA layers, as after some training: no matrix is zero."""
    model = model or tiny_llama()
    lora = LoraConfig(**{"r": rank, "lora_alpha": 8, "target_modules": list(TARGETS)} | config)
    if prepare is not None:
        prepare(model, lora)
    adapted = get_peft_model(model, lora)
    assert isinstance(adapted, PeftModel)
    train(adapted)
    return adapted


def train(adapted: PeftModel) -> None:
    """Moves every trainable number, as training would."""
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def save(adapted: PeftModel, folder: Path, **how_to_save: Any) -> Path:
    adapted.save_pretrained(str(folder), **how_to_save)
    return folder
