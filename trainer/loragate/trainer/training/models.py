"""The model that is trained: a base model's weights as the method wants them, and an adapter on it.

Seeds are set before an adapter is made, since its first half starts at random.
"""

from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, set_seed

from loragate.trainer.errors import TrainingError
from loragate.trainer.settings.method import MethodSettings
from loragate.trainer.settings.section import settled
from loragate.trainer.settings.training import Precision
from loragate.trainer.training.adapter_loading import AdapterNotApplied, require_applied
from loragate.trainer.training.attention import offer_float32_attention


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


def keep_quantized_layout(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights as they are when they only compute forward on a CPU.

    It would repack them in place for a faster product that has no gradient, and never undo that:
    after the first validation, training would go on with gradients that end at the last layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - typed as a tensor


def add_adapter(model: PreTrainedModel, method: MethodSettings, seed: int) -> PeftModel:
    """A new adapter, which does nothing yet, its weights in float32."""
    set_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return _without_casts(cast(PeftModel, get_peft_model(model, lora_config(method))))


def continue_adapter(model: PreTrainedModel, folder: Path, seed: int, dropout: float) -> PeftModel:
    """The adapter in `folder`, to be trained further. Raises TrainingError."""
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
    """PEFT's configuration, of a method in which nothing is left to be resolved."""
    return LoraConfig(
        r=settled(method.rank),
        lora_alpha=_whole(settled(method.alpha)),
        lora_dropout=method.dropout,
        target_modules=list(settled(method.target_modules)),
        use_rslora=method.name == "rslora",
        bias="none",
        task_type="CAUSAL_LM",
    )


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
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


def quantization_config(method: MethodSettings) -> BitsAndBytesConfig | None:
    """Of qlora's base; None for the other methods."""
    if method.name != "qlora":
        return None
    if method.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=method.double_quantization,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _whole(number: float) -> int:
    """32.0 as 32, which engines expect; PEFT takes and writes other numbers as they are."""
    return int(number) if number == int(number) else cast(int, number)
