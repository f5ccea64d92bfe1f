"""The best weights of a run as they are handed on."""

import json
import shutil
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file

from loragate.adapters.base_models.preparation import BaseModel
from loragate.trainer.settings.method import MethodSettings

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def write_adapter(best: Path, target: Path, method: MethodSettings, base: BaseModel) -> None:
    """An adapter in PEFT's form, byte for byte the same for the same weights.

    The configuration names the base model, not a path of this machine.
    """
    partial = _empty(target)
    dtype = torch.float32 if method.adapter_dtype == "float32" else torch.bfloat16
    tensors = load_file(best / _WEIGHTS)
    save_file(
        {name: tensors[name].to(dtype).contiguous() for name in sorted(tensors)},
        partial / _WEIGHTS,
        metadata={"format": "pt"},
    )
    config = cast(dict[str, object], json.loads((best / _CONFIG).read_text()))
    config["base_model_name_or_path"] = base.name
    config["inference_mode"] = True
    config["target_modules"] = sorted(cast(list[str], config["target_modules"]))
    (partial / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _swap_in(partial, target)


def write_model(best: Path, target: Path, base: BaseModel) -> None:
    """A whole model, with the base's tokenizer and chat template."""
    partial = _empty(target)
    shutil.copytree(best, partial, dirs_exist_ok=True)
    for file in base.path.iterdir():
        is_text = file.suffix in (".json", ".jinja", ".model", ".txt")
        if is_text and file.name != "loragate-model.json" and not (partial / file.name).exists():
            shutil.copy2(file, partial)
    _swap_in(partial, target)


def _empty(target: Path) -> Path:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _swap_in(partial: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
