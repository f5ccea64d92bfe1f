"""Random rank-16 adapters of all seven linear layers: their speed is that of trained ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

RANK = 16
_ALPHA = 16


def make_adapter(folder: Path, model: Path, seed: int, rank: int = RANK) -> Path:
    """Writes an adapter in PEFT's form for the Llama-like model at `model`; returns the folder."""
    config = AutoConfig.from_pretrained(str(model))
    hidden, inner = config.hidden_size, config.intermediate_size
    key_value = config.num_key_value_heads * (hidden // config.num_attention_heads)
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.num_hidden_layers):
        for module, (inputs, outputs) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            a = torch.randn(rank, inputs, generator=random) / inputs**0.5
            b = torch.randn(outputs, rank, generator=random) * 0.02
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [module.split(".")[1] for module in shapes],
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
