"""vLLM's attention on CPU called straight, without what it does for other backends and compilers.

Thirty times a step, looking up what is the same for all layers, and views of the cache that stay
the same from step to step, cost more than the attention of one token.
"""

from typing import Any, cast

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata


class StraightAttention:
    """As `Attention.forward` with a `CPUAttentionBackendImpl`, into memory that is given."""

    def __init__(self, layer: Attention, impl: CPUAttentionBackendImpl) -> None:
        # Typed loosely: vLLM puts `isa` on the layer when it makes the first step's metadata.
        self._layer: Any = layer
        self._impl, self._name = impl, layer.layer_name
        self._cache: torch.Tensor | None = None
        self._keys = self._values = torch.empty(0)
        self._write = torch.ops._C.cpu_attn_reshape_and_cache.default
        self._attend = torch.ops._C.cpu_attention_with_kv_cache.default
        self._scales = cast("float", layer._k_scale_float), cast("float", layer._v_scale_float)

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attended: torch.Tensor
    ) -> None:
        """Of [tokens, heads, width] each. Keys and values go into the running step's cache."""
        context = get_forward_context()
        if context.attn_metadata is None:  # vLLM measures memory, and nobody looks at the result
            return
        metadata = cast("dict[str, CPUAttentionMetadata]", context.attn_metadata)[self._name]
        cache, impl = self._layer.kv_cache, self._impl
        if cache is not self._cache:
            self._look_at(cache)
        slots = cast("dict[str, torch.Tensor]", context.slot_mapping).get(self._name)
        if slots is not None:
            self._write(
                k, v, self._keys, self._values, slots, self._layer.isa, *self._scales,
                impl.kv_cache_dtype,
            )  # fmt: skip
        count = metadata.num_actual_tokens
        if count != len(q):
            q, attended = q[:count], attended[:count]
        self._attend(
            q, self._keys, self._values, attended, metadata.query_start_loc, metadata.seq_lens,
            impl.scale, metadata.causal, impl.alibi_slopes, impl.sliding_window,
            metadata.block_table, impl.logits_soft_cap, metadata.scheduler_metadata, None,
            metadata.dynamic_causal, *self._scales, impl.kv_cache_dtype,
        )  # fmt: skip

    def _look_at(self, cache: torch.Tensor) -> None:
        """[blocks, heads, block, keys and values] as vLLM's kernels want it."""
        blocks, heads, block, _ = cache.size()
        halves = cache.view((blocks, heads, block * 2, -1)).chunk(2, dim=2)
        self._cache, (self._keys, self._values) = cache, halves


def straight(layer: torch.nn.Module) -> StraightAttention | None:
    """None where vLLM does more than what is done here."""
    if type(layer) is not Attention or type(layer.impl) is not CPUAttentionBackendImpl:
        return None
    is_plain = (
        layer.use_direct_call
        and layer.query_quant is None
        and layer.kv_sharing_target_layer_name is None
        and not layer.attn_backend.forward_includes_kv_cache_update
        and layer.impl.attn_type == AttentionType.DECODER
        and layer.impl.sinks is None
    )
    return StraightAttention(layer, layer.impl) if is_plain else None
