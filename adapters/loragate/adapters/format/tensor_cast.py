"""Numbers of one floating-point type as another, each rounded to the nearest, ties to even.

Works on the bits where bfloat16 is concerned, which NumPy has not. What is no number stays none.
"""

from __future__ import annotations

import errno
from io import FileIO
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BITS: Final = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
"""The integers that hold the numbers of each type, as safetensors names it."""

_FLOATS: Final = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_Bits = NDArray[Any]


def read_cast(
    file: FileIO, begin: int, shape: tuple[int, ...], given: str, wanted: str, *, transposed: bool
) -> memoryview:
    """The bytes of a tensor that lies in the file at ``begin``, as those of the wanted type; of a
    matrix, where asked for, with rows and columns exchanged. Raises OSError.
    """
    bits = np.empty(prod(shape), BITS[given])
    file.seek(begin)
    left = bits.data.cast("B")
    while left:
        count = file.readinto(left)
        if not count:
            raise OSError(errno.EIO, "the weights have become shorter")
        left = left[count:]
    made = cast(bits, given, wanted).reshape(shape)
    return np.ascontiguousarray(made.T if transposed else made).data.cast("B")


def cast(bits: _Bits, given: str, wanted: str) -> _Bits:
    """``bits`` are integers of ``BITS[given]``; those of ``BITS[wanted]`` come back, in an array of
    the same shape, which is the given one where nothing is to be changed.
    """
    if given == wanted:
        return bits
    if wanted == "BF16":
        return _narrowed(bits if given == "F32" else _as_float32(bits, given))
    numbers = _as_float32(bits, given).view(_FLOATS["F32"])
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        return numbers.astype(_FLOATS[wanted]).view(BITS[wanted])


def _as_float32(bits: _Bits, given: str) -> _Bits:
    """Exactly."""
    match given:
        case "F32":
            return bits
        case "F16":
            return bits.view(_FLOATS["F16"]).astype(_FLOATS["F32"]).view(BITS["F32"])
        case _:
            return bits.astype(BITS["F32"]) << 16


def _narrowed(bits: _Bits) -> _Bits:
    """float32 to bfloat16, its upper half: up where the lower is more than half, or half of odd."""
    is_none = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    made = rounded.astype(BITS["BF16"])
    if is_none.any():  # rounding could have made one an infinity, or a zero
        made[is_none] = 0x7FC0
    return made
