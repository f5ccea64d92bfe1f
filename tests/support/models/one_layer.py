"""A base model of one 4x4 layer, and real adapters for it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from loragate.adapters.base_models.preparation import BaseModel
from support.models.tokenizers import TURNS, byte_tokenizer

LAYER = "model.layers.0.self_attn.q_proj"
WriteAdapter = Callable[..., Path]
"""`write_adapter` below a test's folder, from a name to the adapter's folder."""


def write_base(folder: Path, template: str = TURNS) -> BaseModel:
    byte_tokenizer(template).save_pretrained(folder)
    weights = {f"{LAYER}.weight": np.zeros((4, 4), np.float32)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 512}))
    return BaseModel("tiny", folder, "sha256:0")


def write_adapter(folder: Path, seed: int = 0, rank: int = 2, **config: object) -> Path:
    """A LoRA adapter; another seed makes other weights. `config` goes into its configuration."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": random.normal(size=(rank, 4)).astype(np.float32),
        f"base_model.model.{LAYER}.lora_B.weight": random.normal(size=(4, rank)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    peft = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(peft | config))
    return folder
