"""Small real adapters to publish."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYER = "model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, seed: int = 0, rank: int = 2) -> Path:
    """A LoRA adapter of one 4x4 layer; another seed makes other weights."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": random.normal(size=(rank, 4)).astype(np.float32),
        f"base_model.model.{LAYER}.lora_B.weight": random.normal(size=(4, rank)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
