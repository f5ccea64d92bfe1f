"""Loads base models, and adds or loads adapters.

Seeds are set before an adapter is made, since half of its weights start at random. An adapter that
is loaded is compared with its file: PEFT skips tensors whose names it does not expect, with a
warning at most, and the model then computes like the base.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.files import WEIGHTS
from loragate.adapters.format.lora_tensors import PREFIX
from loragate.adapters.host_memory import free_host_bytes
from loragate.trainer.errors import TrainingError
from loragate.trainer.settings import MethodSettings, Precision, resolved

FLOAT32_ATTENTION = "loragate_float32"
_FEW: Final = 3
_ROOM: Final = 1.2  # times the weights, for activations


def offer_float32_attention() -> str:
    """Registers an attention that computes in float32 where the model is bf16, and returns the name
    by which transformers knows it.
    """
    AttentionInterface.register(FLOAT32_ATTENTION, _float32_attention)
    AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)
    return FLOAT32_ATTENTION


def _float32_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **choices: Any,
) -> tuple[Tensor, None]:
    """Query, key and value are (rows, heads, length, width); (rows, length, heads, width) comes
    back in the query's dtype, and no weights.
    """
    with torch.autocast("cpu", enabled=False):
        mixed, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **choices
        )
    return mixed.to(query.dtype), None


class AdapterNotApplied(LoragateError):
    """A tensor of an adapter that is not in the model, or not with the numbers of the file."""


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
    require_tensors_applied(adapted, load_file(folder / WEIGHTS), str(folder / WEIGHTS))


def require_tensors_applied(adapted: PeftModel, given: Mapping[str, Tensor], where: str) -> None:
    """As `require_applied`, of tensors that came from `where`."""
    held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if left_out := given.keys() - held.keys():
        raise AdapterNotApplied(
            f"{len(left_out)} of {len(given)} tensors of {where} belong to no module of "
            f"the model ({_some(left_out)}); {_repair(left_out)}"
        )
    if bare := held.keys() - given.keys():
        raise AdapterNotApplied(
            f"the adapter's configuration targets modules for which {where} has no "
            f"tensors ({_some(bare)}); save the adapter again"
        )
    if changed := [name for name in given if not _is_same(given, held, name)]:
        raise AdapterNotApplied(
            f"{len(changed)} tensors of {where} are in the model with other numbers "
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


def load_base(
    path: Path, method: MethodSettings, precision: Precision, device: str
) -> PreTrainedModel:
    """The base model's weights on `device`: frozen ones in `precision`, or in 4 or 8 bits for
    qlora; for a full training in float32, since bf16 would swallow small steps.
    """
    dtype = torch.bfloat16 if precision == "bf16" and method.name != "full" else torch.float32
    quantization = quantization_config(method)
    model = AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=dtype,
        quantization_config=quantization,
        attn_implementation=(
            offer_float32_attention() if precision == "bf16" and device == "cpu" else None
        ),
        device_map={"": device},
        local_files_only=True,
    )
    if quantization is not None:
        keep_quantized_layout(model)
    return cast(PreTrainedModel, model)


def load_float32(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """A model in float32 and evaluation mode, to measure with: rounding would change its loss."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, device_map={"": device}, local_files_only=True
    )
    return model.eval()


def load_to_measure(folder: Path, device: str) -> PreTrainedModel:
    """As `load_float32`, or in the numbers that the model is kept in where memory does not hold it
    in float32. "cuda" is taken only where the model fits there in one of both.
    """
    place, dtype = place_to_measure(folder, device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, device_map={"": place}, local_files_only=True
    )
    return model.eval()


def place_to_measure(folder: Path, device: str) -> tuple[str, torch.dtype | Literal["auto"]]:
    """The device and the numbers to measure a model with. Some memory is left for its activations;
    "auto" means those that it is kept in.
    """
    kept = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    exact = kept * 4 // _bytes_of_number(folder)
    if device == "cuda" and torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
        if _ROOM * exact <= free:
            return "cuda", torch.float32
        if _ROOM * kept <= free:
            return "cuda", "auto"
    return "cpu", torch.float32 if _ROOM * exact <= free_host_bytes() else "auto"


def exact_device(folder: Path) -> str:
    """Where a model is computed in float32 and nothing else: a GPU that has room for it, or the
    CPU.
    """
    place, dtype = place_to_measure(folder, "cuda")
    return place if dtype == torch.float32 else "cpu"


def free_device_memory() -> None:
    """Gives back what models that are gone held on a GPU, for another process."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _bytes_of_number(folder: Path) -> int:
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    dtype = getattr(config, "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 4


def keep_quantized_layout(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights as they are when they only compute forward on a CPU.

    It would repack them in place for a faster product that has no gradient, and never undo that:
    after the first validation, training would go on with gradients that end at the last layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - typed as a tensor


def add_adapter(model: PreTrainedModel, method: MethodSettings, seed: int) -> PeftModel:
    """The model with a new adapter in float32, which changes nothing yet; only it is trainable."""
    set_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return _without_casts(cast(PeftModel, get_peft_model(model, lora_config(method))))


def continue_adapter(model: PreTrainedModel, folder: Path, seed: int, dropout: float) -> PeftModel:
    """The model with the adapter of `folder`, which is trainable. Raises TrainingError where it
    does not fit.
    """
    set_seed(seed)
    try:
        config = cast(LoraConfig, LoraConfig.from_pretrained(str(folder)))
        config.lora_dropout = dropout
        # The published name is no path; PEFT would look for it on the hub when it saves.
        config.base_model_name_or_path = model.config.name_or_path
        adapted = cast(
            PeftModel,
            PeftModel.from_pretrained(model, str(folder), is_trainable=True, config=config),
        )
        require_applied(adapted, folder)
    except (AdapterNotApplied, OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"the adapter in {folder} cannot be trained on: {error}") from error
    return _without_casts(adapted)


def lora_config(method: MethodSettings) -> LoraConfig:
    """PEFT's configuration of a method without "auto"."""
    return LoraConfig(
        r=resolved(method.rank),
        lora_alpha=_whole(resolved(method.alpha)),
        lora_dropout=method.dropout,
        target_modules=list(resolved(method.target_modules)),
        use_rslora=method.name == "rslora",
        bias="none",
        task_type="CAUSAL_LM",
    )


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that get gradients, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _without_casts(model: PeftModel) -> PeftModel:
    """Have LoRA layers take their input as it comes.

    In bf16 autocast casts the small weights instead; PEFT's own cast of the activations to the
    weights' float32 would only be undone by it.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - typed as a tensor
    return model


def quantization_config(
    method: MethodSettings, compute_dtype: torch.dtype = torch.bfloat16
) -> BitsAndBytesConfig | None:
    """How the base of qlora is quantised; None for other methods. 4-bit products are computed in
    `compute_dtype`.
    """
    if method.name != "qlora":
        return None
    if method.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=method.double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _whole(number: float) -> int:
    """32.0 as 32, since engines expect an integer; other numbers stay, which PEFT writes too."""
    return int(number) if number == int(number) else cast(int, number)
