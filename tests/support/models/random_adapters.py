"""Real PEFT adapters for tests, with random weights strong enough to change what is said."""

import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_random_adapter(
    folder: Path,
    model: Path,
    *,
    rank: int,
    seed: int,
    use_rslora: bool = False,
    strength: float = 0.6,
) -> Path:
    """Saves an adapter for the model at `model` in `folder` and returns the folder.

    Its scale is 1, with alpha over the rank, or over the rank's root with `use_rslora`. The usual
    `strength` has a plain effect on what is said.
    """
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        lora_alpha=math.isqrt(rank) if use_rslora else rank,
        use_rslora=use_rslora,
        target_modules=LINEARS,
        init_lora_weights=False,
        bias="none",
    )
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.mul_(strength)
    adapted.save_pretrained(str(folder))
    return folder


def shuffle_adapter(folder: Path, source: Path, *, seed: int) -> Path:
    """Saves the same numbers in another order: as strong an adapter, which says other things."""
    shutil.copytree(source, folder)
    order = torch.Generator().manual_seed(seed)
    weights = folder / "adapter_model.safetensors"
    shuffled = {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=order)].view_as(tensor)
        for name, tensor in load_file(weights).items()
    }
    save_file(shuffled, weights, metadata={"format": "pt"})
    return folder
