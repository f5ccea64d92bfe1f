"""The numbers in an adapter's tensors, read in blocks: are they finite, and can they do anything?

Works on the bits, since NumPy has no bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.lora_tensors import LoraPair
from loragate.adapters.format.safetensors_header import Tensor, read_data_start

_BLOCK_BYTES: Final = 4 << 20
_Bits = NDArray[np.uint16 | np.uint32]

# dtype: (the integer of its size, its exponent's bits); all ones there is infinity or no number
_FORMATS: Final = {
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}


def check_values(path: Path, pairs: Iterable[LoraPair]) -> None:
    """Raise InvalidAdapter: ``not_finite`` for a NaN or an infinity, ``no_effect`` where the
    product of every pair is zero, ``invalid_safetensors`` if the file shrank under us.
    """
    has_effect = False
    with path.open("rb") as file:
        data_start = read_data_start(file)
        for pair in pairs:
            is_a_set = _has_numbers(file, data_start, pair.a, f"{pair.module}.lora_A")
            is_b_set = _has_numbers(file, data_start, pair.b, f"{pair.module}.lora_B")
            has_effect |= is_a_set and is_b_set
    if not has_effect:
        raise InvalidAdapter(
            "no_effect",
            "every product of lora_B and lora_A is zero, as before the first step of training, so "
            "the answers would be the base model's; train the adapter, then save it",
        )


def _has_numbers(file: BinaryIO, data_start: int, tensor: Tensor, name: str) -> bool:
    """Whether any number is not zero. Raises InvalidAdapter for one that is not finite."""
    integer, exponent = _FORMATS[tensor.dtype]
    sign = 1 << (integer.itemsize * 8 - 1)
    is_set = False
    file.seek(data_start + tensor.begin)
    for bits in _blocks(file, prod(tensor.shape) * integer.itemsize, integer):
        if np.any((bits & exponent) == exponent):
            raise InvalidAdapter(
                "not_finite",
                f"{name} holds NaN or infinity: the training diverged; train again with a lower "
                "learning rate, or publish an earlier checkpoint",
            )
        is_set = is_set or bool(np.any(bits & (sign - 1)))
    return is_set


def _blocks(
    file: BinaryIO, size_bytes: int, integer: np.dtype[np.uint16 | np.uint32]
) -> Iterator[_Bits]:
    while size_bytes:
        block = file.read(min(size_bytes, _BLOCK_BYTES))
        if not block or len(block) % integer.itemsize:
            raise InvalidAdapter(
                "invalid_safetensors", "the weights shrank while they were read; publish again"
            )
        size_bytes -= len(block)
        yield np.frombuffer(block, integer)
