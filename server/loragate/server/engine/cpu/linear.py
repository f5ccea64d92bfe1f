"""Products with the model's weights on CPU by our own kernel (native/linear.c), where it is faster.

A step that generates a token for each of some streams multiplies a few rows with all weights. Where
the processor has AVX-512's bfloat16 products and no AMX, the kernel takes 7 to 10 ms for the 270 MB
of SmolLM2-135M and one row, 17 for 16 rows; oneDNN 12 to 15 and 18 to 23. Where it has no bfloat16
products, oneDNN widens all weights again and again, and the kernel is two to ten times as fast. It
is as fast for long prompts, so oneDNN's copy of the weights is not made.
"""

import ctypes
from typing import cast

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from loragate.server.engine.cpu.huge_pages import HugePages

_PAIR = 2  # as in native/linear_bfloat16.h
_MOST_TOGETHER = 4  # as in native/linear_int8.h
# Others may do more than multiply.
_PLAIN = (ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear)
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class _Weights(ctypes.Structure):
    """`struct linear` of native/team.h."""

    _fields_ = (
        ("out_features", _NUMBER),
        ("in_features", _NUMBER),
        ("packed", _POINTER),
        ("scales", _POINTER),
    )


class PackedLinear:
    """`x Wᵀ + bias` for bfloat16 x of [..., in], and W of [out, in], which it has a copy of."""

    def __init__(self, library: ctypes.CDLL, memory: HugePages, weight: torch.Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self._packed = memory.empty((self.out_features, self.in_features), weight.dtype)
        self._memory = memory
        self._scales: torch.Tensor | None = None
        pack = library.pack_linear
        pack.argtypes, pack.restype = (_POINTER, _NUMBER, _NUMBER, _POINTER), None
        pack(weight.data_ptr(), *weight.shape, self._packed.data_ptr())
        self._weights = _Weights(*weight.shape, self._packed.data_ptr(), None)
        # Of what says where the weights are, also once `quantise` has put others there.
        self.address = ctypes.addressof(self._weights)
        self._library = library
        self._multiply = library.linear_forward
        self._multiply.restype = None
        self._multiply.argtypes = (
            _POINTER, _POINTER, _NUMBER, _POINTER, _NUMBER, _NUMBER,
        )  # fmt: skip

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """As vLLM calls it; its own `weight` may be empty by now."""
        return self.multiply(x, bias)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., out] in bfloat16. The last dimension of x is `in`."""
        rows = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        count = rows.shape[0]
        y = x.new_empty((count, self.out_features))
        self._multiply(
            self.address, y.data_ptr(), self.out_features, rows.data_ptr(), rows.stride(0), count
        )
        if bias is not None:
            y += bias
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def quantise(self) -> bool:
        """Rounds the weights to eight bits and forgets the bfloat16 ones: half of the memory, and
        of what a step reads. From then on x is rounded too, see native/linear_int8.h. False for
        what no kernel covers, which stays as it is.
        """
        if self._scales is not None or self.in_features % _MOST_TOGETHER:
            return self._scales is not None
        shape = (self.out_features, self.in_features)
        packed = self._memory.empty(shape, torch.uint8)
        groups = self._library.linear_groups(_NUMBER(self.in_features))
        scales = self._memory.empty((self.out_features * groups,), torch.bfloat16)
        quantise = self._library.quantise_linear
        quantise.argtypes, quantise.restype = (_POINTER, _NUMBER, _NUMBER, _POINTER, _POINTER), None
        quantise(self._packed.data_ptr(), *self._packed.shape, packed.data_ptr(), scales.data_ptr())
        self._packed, self._scales = packed, scales
        self._weights.packed, self._weights.scales = packed.data_ptr(), scales.data_ptr()
        return True


class AdaptedLinear:
    """What a layer of vLLM's with LoRA does on one processor, without the thirty calls between.

    Looked up once are the weights' addresses, so it is made when they have come to stay.
    """

    def __init__(self, layer: BaseLinearLayerWithLoRA) -> None:
        base = layer.base_layer
        bias = cast("torch.Tensor | None", base.bias)
        linear = cast("PackedLinear", base.cpu_linear)
        self._multiply = linear.multiply
        self._bias = None if base.skip_bias_add else bias
        self._output_bias = bias if base.skip_bias_add else None
        self._returns_bias = bool(base.return_bias)
        self._forward = layer.forward
        self._add_lora = layer.punica_wrapper.add_lora_linear
        self._stacks = layer.lora_a_stacked, layer.lora_b_stacked
        self._slices = layer.output_slices

    def __call__(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        """As the layer's `forward`."""
        if x.dim() != 2:  # a model of the transformers backend has a dimension more
            return self._forward(x)
        y = self._multiply(x, self._bias)
        self._add_lora(y, x, *self._stacks, 1.0, self._slices)
        return (y, self._output_bias) if self._returns_bias else y


def shorten_calls(layer: BaseLinearLayerWithLoRA) -> None:
    """Lets the layer compute by `AdaptedLinear`, if it is one of the plain kinds."""
    if packed(layer.base_layer) is not None:
        layer.forward = AdaptedLinear(layer)


def packed(layer: torch.nn.Module) -> PackedLinear | None:
    """By what the layer multiplies, if besides a bias it does nothing else."""
    if type(layer) not in _PLAIN or layer.tp_size != 1:
        return None
    linear = getattr(layer, "cpu_linear", None)
    return linear if isinstance(linear, PackedLinear) else None


def register(library: ctypes.CDLL, memory: HugePages) -> None:
    """From now on vLLM's linear layers are ours where the kernel covers them, with their weights
    in `memory`. Once per process.
    """
    dispatch = utils.dispatch_cpu_unquantized_gemm

    def dispatch_packed(layer: torch.nn.Module, remove_weight: bool) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        if not covers(library, weight):
            dispatch(layer, remove_weight)
            return
        setattr(layer, "cpu_linear", PackedLinear(library, memory, weight.detach()))  # noqa: B010 - vLLM's
        if remove_weight:
            empty = torch.empty(0, dtype=weight.dtype)
            layer.weight = torch.nn.Parameter(empty, requires_grad=False)

    # Where vLLM asks for the products of a layer whose weights it has just loaded.
    utils.dispatch_cpu_unquantized_gemm = dispatch_packed


def is_worth_it() -> bool:
    """Whether oneDNN has no code that is faster: it has for AMX."""
    return not torch.cpu._is_amx_tile_supported()


def covers(library: ctypes.CDLL, weight: torch.Tensor) -> bool:
    """Whether there is code for such a weight."""
    if weight.is_meta or weight.dim() != 2 or weight.dtype is not torch.bfloat16:
        return False
    columns = library.linear_columns()
    return weight.is_contiguous() and weight.shape[0] % columns == 0 == weight.shape[1] % _PAIR
