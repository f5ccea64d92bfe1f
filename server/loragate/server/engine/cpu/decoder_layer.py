"""Decoder layers of Llama's kind on CPU as two calls into C, before and after vLLM's attention.

A step of one stream goes through thirty layers of a small model in some ten milliseconds. One by
one, their linear layers, adapters, norms, activations and rotary embeddings cost a third more:
there is Python between them, and for each of them threads begin and end. See native/layer.c.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from loragate.server.engine.cpu.attention import straight
from loragate.server.engine.cpu.linear import PackedLinear, packed
from loragate.server.engine.cpu.lora_kernel import Layer, LoraKernel
from loragate.server.engine.cpu.punica_wrapper import GroupedPunicaWrapper

_LANES = 16  # as in vectors.h
_LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class _Projection(ctypes.Structure):
    _fields_ = (("linear", _POINTER), ("lora", _POINTER))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", _Projection),
        ("attended", _Projection),
        ("gate_up", _Projection),
        ("down", _Projection),
        ("attention_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("heads", _NUMBER),
        ("head_width", _NUMBER),
        ("half", _NUMBER),
        ("epsilon", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer of vLLM's that the kernels cover."""

    linear: PackedLinear
    lora: Layer | None

    @property
    def projection(self) -> _Projection:
        """Has addresses only: this object has to live as long."""
        return _Projection(self.linear.address, self.lora and self.lora.address)


class _Shape(NamedTuple):
    heads_in: int  # of queries, keys and values
    query_heads: int
    head_width: int
    wide: int  # gate and up of the MLP
    narrow: int


class _Buffers:
    """What one step's layers compute in, one after the other."""

    def __init__(self, rows: int, shape: _Shape) -> None:
        new = partial(torch.empty, dtype=torch.bfloat16)
        self.rows, self.shape = rows, shape
        self.qkv = new((rows, shape.heads_in * shape.head_width))
        self.attended = new((rows, shape.query_heads * shape.head_width))
        self._wide, self._narrow = new((rows, shape.wide)), new((rows, shape.narrow))
        kv_heads = (shape.heads_in - shape.query_heads) // 2
        by_head = self.qkv.view(rows, shape.heads_in, shape.head_width)
        self.q, self.k, self.v = by_head.split([shape.query_heads, kv_heads, kv_heads], dim=1)
        self.out = self.attended.view(rows, shape.query_heads, shape.head_width)
        buffers = self.qkv, self.attended, self._wide, self._narrow
        self.addresses = tuple(each.data_ptr() for each in buffers)


class Workspace:
    """Memory that a model's layers share, kept from step to step while as many tokens come."""

    def __init__(self) -> None:
        self._buffers: _Buffers | None = None

    def take(self, rows: int, shape: _Shape) -> _Buffers:
        """Overwritten by whoever takes it next."""
        kept = self._buffers
        if kept is None or kept.rows != rows or kept.shape != shape:
            kept = self._buffers = _Buffers(rows, shape)
        return kept


class FusedLayer:
    """What a decoder layer does, for bfloat16 hidden states of [tokens, hidden].

    Looked up once are the weights' addresses, so it is made when they have come to stay.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        kernel: LoraKernel,
        workspace: Workspace,
        layer: LlamaDecoderLayer,
        linears: Sequence[_Linear],
    ) -> None:
        attention = cast("LlamaAttention", layer.self_attn)
        rotary = cast("RotaryEmbedding", attention.rotary_emb)
        _, _, gate_up, down = (each.linear for each in linears)
        self._layer = _Layer(
            *(each.projection for each in linears),
            layer.input_layernorm.weight.data_ptr(),
            layer.post_attention_layernorm.weight.data_ptr(),
            attention.num_heads + attention.num_kv_heads,
            attention.head_dim,
            rotary.rotary_dim // 2,
            layer.input_layernorm.variance_epsilon,
        )
        self._address, self._batch = ctypes.addressof(self._layer), kernel.batch_address
        self._shape = _Shape(
            attention.num_heads + 2 * attention.num_kv_heads,
            attention.num_heads,
            attention.head_dim,
            gate_up.out_features,
            down.in_features,
        )
        self._workspace = workspace
        table = rotary._match_cos_sin_cache_dtype(torch.empty(0, dtype=torch.bfloat16))
        self._table = table.data_ptr()
        self._kept = linears, kernel, table
        self._straight = straight(attention.attn)
        self._attention = attention.attn
        self._forward = layer.forward
        self._before = library.layer_before_attention
        self._before.argtypes, self._before.restype = (*[_POINTER] * 7, _NUMBER), None
        self._after = library.layer_after_attention
        self._after.argtypes, self._after.restype = (*[_POINTER] * 7, _NUMBER), None

    def __call__(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the layer's `forward`: what it adds to the residual, and that. Overwrites both."""
        if hidden_states.dim() != 2 or positions.dim() != 1:
            return self._forward(positions, hidden_states, residual)
        if residual is None:  # the first layer
            residual, hidden_states = hidden_states.clone(), torch.zeros_like(hidden_states)
        rows, x, kept = len(hidden_states), hidden_states.data_ptr(), residual.data_ptr()
        buffers = self._workspace.take(rows, self._shape)
        qkv, attended, wide, narrow = buffers.addresses
        self._before(
            self._address, self._batch, x, kept, qkv, positions.data_ptr(), self._table, rows
        )
        if self._straight is not None:
            self._straight(buffers.q, buffers.k, buffers.v, buffers.out)
        else:
            parts = (part.flatten(1) for part in (buffers.q, buffers.k, buffers.v))
            buffers.attended.copy_(self._attention(*parts))
        self._after(self._address, self._batch, attended, x, kept, wide, narrow, rows)
        return hidden_states, residual


def fuse(
    library: ctypes.CDLL, kernel: LoraKernel, workspace: Workspace, layer: torch.nn.Module
) -> None:
    """Lets the layer compute by `FusedLayer`, if it is of the kind that there is code for. Layers
    that never compute at the same time may share `workspace`.
    """
    if type(layer) is not LlamaDecoderLayer or not _is_plain(layer):
        return
    linears = [_linear(layer.get_submodule(name)) for name in _LINEARS]
    if all(linears):
        layer.forward = FusedLayer(
            library, kernel, workspace, layer, cast("list[_Linear]", linears)
        )


def _is_plain(layer: LlamaDecoderLayer) -> bool:
    """Whether its parts are those of vllm_cpu_ops, in the forms that these cover."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = layer.input_layernorm, layer.post_attention_layernorm
    rotary = cast("RotaryEmbedding", attention.rotary_emb)
    return (
        type(attention) is LlamaAttention
        and type(mlp) is LlamaMLP
        and type(rotary) is op_registry_oot["RotaryEmbedding"]
        and rotary.is_neox_style
        and rotary.rotary_dim % (2 * _LANES) == 0
        and type(mlp.act_fn) is op_registry_oot["SiluAndMul"]
        and all(map(_is_plain_norm, norms))
        and norms[0].variance_epsilon == norms[1].variance_epsilon
    )


def _is_plain_norm(norm: RMSNorm) -> bool:
    return (
        type(norm) is op_registry_oot["RMSNorm"]
        and norm.has_weight
        and norm.variance_size_override is None
        and norm.weight.dtype is torch.bfloat16
    )


def _linear(layer: torch.nn.Module) -> _Linear | None:
    """None where it is not only a product with weights, and adapters that the kernel covers."""
    lora = None
    if isinstance(layer, BaseLinearLayerWithLoRA):
        assert isinstance(layer.punica_wrapper, GroupedPunicaWrapper)
        lora = layer.punica_wrapper.layer(layer.lora_a_stacked, layer.lora_b_stacked)
        if lora is None or layer.lora_a_stacked[0].dtype is not torch.bfloat16:
            return None
        layer = layer.base_layer
    linear = packed(layer)
    if linear is None or layer.bias is not None:
        return None
    return _Linear(linear, lora)
