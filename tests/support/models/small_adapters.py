"""A small real LoRA adapter."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_small_adapter(folder: Path, *, seed: int = 0, rank: int = 2, **config: object) -> Path:
    """For one 4x4 layer; another seed makes other weights."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{layer}.lora_A.weight": random.normal(size=(rank, 4)).astype(np.float32),
            f"{layer}.lora_B.weight": random.normal(size=(4, rank)).astype(np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    peft = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(peft | config))
    return folder
