"""An adapter beside its base model, with the proof that all of it is there.

PEFT leaves tensors out whose names it does not expect, with a warning at most, and what is left is
the base model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import torch
from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.files import WEIGHTS
from loragate.adapters.format.lora_tensors import PREFIX

_FEW: Final = 3


class AdapterNotApplied(LoragateError):
    """Tensors of an adapter that are not in the model, or not as they are in the file."""


def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """The model with the adapter in it, in evaluation mode. Raises AdapterNotApplied."""
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    assert isinstance(adapted, PeftModel)
    require_applied(adapted, folder)
    return adapted


def require_applied(adapted: PeftModel, folder: Path) -> None:
    """Raise AdapterNotApplied unless every tensor of the folder's file is in its module as it was
    written, and every adapted module has its tensors.
    """
    given = load_file(folder / WEIGHTS)
    held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if left_out := given.keys() - held.keys():
        raise AdapterNotApplied(
            f"{len(left_out)} of {len(given)} tensors of {folder / WEIGHTS} belong to no module of "
            f"the model ({_some(left_out)}); {_repair(left_out)}"
        )
    if bare := held.keys() - given.keys():
        raise AdapterNotApplied(
            f"the adapter's configuration targets modules for which {folder / WEIGHTS} has no "
            f"tensors ({_some(bare)}); save the adapter again"
        )
    if changed := [name for name in given if not _is_same(given, held, name)]:
        raise AdapterNotApplied(
            f"{len(changed)} tensors of {folder / WEIGHTS} are in the model with other numbers "
            f"({_some(changed)}); save the adapter again with PEFT's save_pretrained"
        )


def _is_same(given: Mapping[str, Tensor], held: Mapping[str, Tensor], name: str) -> bool:
    ours, theirs = given[name].float(), held[name].float().cpu()
    return ours.shape == theirs.shape and torch.equal(ours, theirs)


def _some(names: Collection[str]) -> str:
    few = sorted(names)[:_FEW]
    return ", ".join(few) + (", …" if len(names) > _FEW else "")


def _repair(names: Collection[str]) -> str:
    if any(not name.startswith(PREFIX) for name in names):
        return (
            f"put {PREFIX} before the names, as PEFT's save_pretrained writes them, and publish "
            "the adapter again"
        )
    return "merge it into the model that it was trained on"
