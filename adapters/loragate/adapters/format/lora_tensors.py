"""The tensors of an adapter as pairs of LoRA matrices, one pair for each adapted module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.peft_config import AdapterConfig
from loragate.adapters.format.safetensors_header import Tensor

PREFIX: Final = "base_model.model."
"""What PEFT writes before a module's name. The engine does without; PEFT itself drops a tensor that
has it not.
"""
_NAME: Final = re.compile(rf"(?:{re.escape(PREFIX)})?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_NAME_LIMIT: Final = 512
_DTYPES: Final = ("F32", "F16", "BF16")
_EMBEDDINGS: Final = frozenset({"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out"})


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one module: ``a`` is [rank, in], ``b`` is [out, rank]."""

    module: str
    a: Tensor
    b: Tensor


def is_embedding(module: str) -> bool:
    """Whether a module's name, or the end of one, is that of an input or output embedding."""
    return module.rpartition(".")[2] in _EMBEDDINGS


def lora_pairs(tensors: Mapping[str, Tensor], config: AdapterConfig) -> tuple[LoraPair, ...]:
    """The pairs, by module. Raises InvalidAdapter for a tensor that is no LoRA matrix, a matrix
    without its other half, another type than 32 or 16 bit floats, or another rank than configured.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, side = _parse(name)
        if sides.setdefault(module, {}).setdefault(side, tensor) is not tensor:
            raise InvalidAdapter(
                "duplicate_tensor",
                f"module {module!r} has two lora_{side}, with and without the prefix "
                "base_model.model.; save the adapter again",
            )
        if tensor.dtype not in _DTYPES:
            raise InvalidAdapter(
                "unsupported_dtype",
                f"tensor {name!r} has the type {tensor.dtype}; save the adapter as one of "
                f"{', '.join(_DTYPES)}",
            )
    if not sides:
        raise InvalidAdapter(
            "no_tensors", "adapter_model.safetensors holds no tensors; train and save again"
        )
    return tuple(_pair(module, sides[module], config) for module in sorted(sides))


def check_prefix(tensors: Mapping[str, Tensor]) -> None:
    """Raise InvalidAdapter (``missing_prefix``) for a name that PEFT would not find."""
    for name in tensors:
        if not name.startswith(PREFIX):
            raise InvalidAdapter(
                "missing_prefix",
                f"tensor {name[:_NAME_LIMIT]!r} has not the prefix {PREFIX} in its name, without "
                "which PEFT leaves it out and merges the base model alone; save the adapter with "
                "PEFT's save_pretrained, or put the prefix before each name",
            )


def _parse(name: str) -> tuple[str, str]:
    found = _NAME.fullmatch(name) if len(name) <= _NAME_LIMIT else None
    if found is not None and not is_embedding(found["module"]):
        return found["module"], found["side"]
    if found is not None or "lora_embedding_" in name:
        raise InvalidAdapter(
            "embedding_adapter",
            f"tensor {name[:_NAME_LIMIT]!r} adapts an embedding, which is not served; train with "
            "target_modules that are linear layers",
        )
    module, _, parameter = name.rpartition(".")
    if parameter == "weight" and is_embedding(module.removesuffix(".base_layer")):
        raise InvalidAdapter(
            "saved_embeddings",
            f"tensor {name!r} is a whole embedding of the model, as PEFT saves it when tokens were "
            "added; train without new tokens, or save with save_embedding_layers=False if none "
            "were",
        )
    raise InvalidAdapter(
        "unexpected_tensor",
        f"adapter_model.safetensors holds the tensor {name[:_NAME_LIMIT]!r}, which is no "
        "lora_A.weight or lora_B.weight; train plain LoRA and save it with PEFT's save_pretrained",
    )


def _pair(module: str, sides: Mapping[str, Tensor], config: AdapterConfig) -> LoraPair:
    for side, other in (("A", "B"), ("B", "A")):
        if side not in sides:
            raise InvalidAdapter(
                "missing_pair",
                f"module {module!r} has lora_{other} and no lora_{side}; save the adapter again",
            )
    rank, a, b = config.rank_of(module), sides["A"], sides["B"]
    is_sound = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] == rank
    if not is_sound:
        raise InvalidAdapter(
            "wrong_rank",
            f"module {module!r} has lora_A {list(a.shape)} and lora_B {list(b.shape)} where "
            f"adapter_config.json says rank {rank}; save the weights and their configuration "
            "together",
        )
    return LoraPair(module, a, b)
