"""Attention for bf16 on a CPU: computed in float32, where PyTorch's backward is twice as fast."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FLOAT32_ATTENTION = "loragate_float32"


def offer_float32_attention() -> str:
    """Makes it known to transformers; its name is what models are loaded with."""
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
