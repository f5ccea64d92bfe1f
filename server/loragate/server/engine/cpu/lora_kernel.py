"""The compiled product of LoRA on CPU (native/lora.c), called by addresses."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_SLICES = 4  # as in lora.c
_MOST_RANK = 512


class _Layer(ctypes.Structure):
    _fields_ = (
        ("in_features", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("slices", ctypes.c_int64),
        ("widths", ctypes.c_int64 * _MOST_SLICES),
        ("a", ctypes.c_void_p * _MOST_SLICES),
        ("b", ctypes.c_void_p * _MOST_SLICES),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("ranks", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """One slice's weights of every slot: A is [slots, rank, in], B is [slots, rank, out]."""

    a: int  # addresses
    b: int
    out_features: int


class LoraKernel:
    """`y += (x Aᵀ) Bᵀ`, each row with the weights of its own slot. Computes in place."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._functions = {
            "bfloat16": library.lora_add_bfloat16,
            "float32": library.lora_add_float32,
        }
        for function in self._functions.values():
            function.argtypes = (pointer, pointer, pointer, number, pointer, number)
            function.restype = None
        self._batch = _Batch()

    @property
    def batch_address(self) -> int:
        """Of the rows as `set_rows` has last set them."""
        return ctypes.addressof(self._batch)

    def takes(self, dtype: str, slices: int, rank: int) -> bool:
        """Whether there is code for such a layer; `dtype` is of weights and of activations."""
        return dtype in self._functions and slices <= _MOST_SLICES and rank <= _MOST_RANK

    def set_rows(self, count: int, rows: int, slots: int, ranks: int) -> None:
        """The rows that have an adapter, until the next call.

        `rows` and `slots` are addresses of `count` int64 each, sorted by slot; `ranks` of one for
        each slot there is: how much of the stacks' rank its adapter uses. Whoever calls keeps them
        alive.
        """
        self._batch.count, self._batch.rows = count, rows
        self._batch.slots, self._batch.ranks = slots, ranks

    def layer(self, dtype: str, in_features: int, rank: int, stacks: Sequence[Stack]) -> "Layer":
        """Describes a layer once, so that a call has nothing to convert."""
        structure = _Layer(in_features, rank, len(stacks))
        for index, stack in enumerate(stacks):
            structure.widths[index] = stack.out_features
            structure.a[index] = stack.a
            structure.b[index] = stack.b
        return Layer(self._functions[dtype], structure, self._batch)


class Layer:
    """One linear layer; its weights must stay where they are."""

    __slots__ = ("_batch", "_batch_address", "_function", "_layer", "address")

    def __init__(self, function: "ctypes._NamedFuncPointer", layer: _Layer, batch: _Batch) -> None:
        self._function = function
        self._layer, self.address = layer, ctypes.addressof(layer)
        self._batch, self._batch_address = batch, ctypes.addressof(batch)

    def add(self, y: int, y_stride: int, x: int, x_stride: int) -> None:
        """`y` and `x` are addresses of the first rows; strides count elements."""
        self._function(self.address, self._batch_address, y, y_stride, x, x_stride)
