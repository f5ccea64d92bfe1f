"""[method]: which weights are learnt."""

from typing import Annotated, Literal

from msgspec import Meta

from loragate.trainer.settings.section import Auto, Positive, Section

MethodName = Literal["lora", "rslora", "qlora", "full"]
# What every engine serves without padding, and what the gate takes.
Rank = Literal[1, 8, 16, 32, 64, 128, 256]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class MethodSettings(Section, frozen=True):
    """Of a full training, only `name` counts."""

    name: MethodName = "lora"
    # "auto": 16, or that of the adapter that training goes on from.
    rank: Rank | Auto = "auto"
    # The change's scale: alpha / rank, for rslora alpha / sqrt(rank). "auto": twice the rank; for
    # rslora the rank.
    alpha: Positive | Auto = "auto"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    # "auto": every linear layer of attention and MLP.
    target_modules: tuple[str, ...] | Auto = "auto"
    # Of the saved adapter; float32 keeps all that was learnt, bfloat16 is half the size.
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    # Of qlora: how the base's weights are kept.
    quantization: Literal["nf4", "int8"] = "nf4"
    double_quantization: bool = True
