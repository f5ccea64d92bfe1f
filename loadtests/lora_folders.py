"""Random LoRA adapters as PEFT folders, for the model that a given adapter was made for."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK = 16
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
# Of B's entries beside A's. Log-probabilities then differ by some tenths of a nat: well above what
# the gate calls an effect, well below what breaks a sentence.
_STRENGTH = 0.02


def write_random_adapter(folder: Path, like: Path, seed: int) -> Path:
    """Writes an adapter with the layers of the one at `like`, but other weights, and rank 16."""
    draw = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, (rows, columns) in _shapes(like / _WEIGHTS).items():
        if ".lora_A." in name:
            values = draw.normal(size=(RANK, columns)) / np.sqrt(columns)
        else:
            values = draw.normal(size=(rows, RANK)) * _STRENGTH
        tensors[name] = values.astype(np.float16)
    config = json.loads((like / _CONFIG).read_text(encoding="utf-8"))
    config |= {"r": RANK, "lora_alpha": RANK, "rank_pattern": {}, "alpha_pattern": {}}
    folder.mkdir(parents=True)
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def _shapes(weights: Path) -> dict[str, tuple[int, int]]:
    """From the file's header alone: numpy does not know every type that weights have."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
