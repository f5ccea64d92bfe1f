"""Real PEFT adapters for tests, with random weights strong enough to change what is said."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_random_adapter(folder: Path, model: Path, *, rank: int, seed: int) -> Path:
    """Saves an adapter for the model at `model` in `folder` and returns the folder."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=LINEARS, init_lora_weights=False, bias="none"
    )
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.6)  # a plain effect on what is said
    adapted.save_pretrained(str(folder))
    return folder
