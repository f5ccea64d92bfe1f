"""The header of a safetensors file, read and checked without touching a tensor's bytes.

The parser is our own so that a hostile file meets it before it meets the engine's: the header must
account for every byte of the file exactly once, in order, and name no tensor twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, BinaryIO, Final

import msgspec
from msgspec import Meta

from loragate.adapters.errors import InvalidAdapter

# The format's own bound on the header's length.
_HEADER_LIMIT_BYTES: Final = 100_000_000
_LENGTH_BYTES: Final = 8
_BITS_PER_ELEMENT: Final = {
    dtype: bits
    for bits, dtypes in (
        (64, ("F64", "C64", "I64", "U64")),
        (32, ("F32", "I32", "U32")),
        (16, ("F16", "BF16", "I16", "U16")),
        (8, ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL")),
        (6, ("F6_E2M3", "F6_E3M2")),
        (4, ("F4",)),
    )
    for dtype in dtypes
}

_NotNegative = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's description; ``begin`` and ``end`` count from the first byte of data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[_NotNegative, ...]
    data_offsets: tuple[_NotNegative, _NotNegative]


def read_header(path: Path) -> Mapping[str, Tensor]:
    """Tensors by name. Raises InvalidAdapter (``invalid_safetensors``) for any inconsistency."""
    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        available = size_bytes - _LENGTH_BYTES
        if not 2 <= length <= min(available, _HEADER_LIMIT_BYTES):
            raise _invalid(path, "its header's length does not fit the file")
        text = file.read(length)
    tensors = _tensors(path, text)
    _check_layout(path, tensors, data_bytes=available - length)
    return MappingProxyType(tensors)


def read_data_start(file: BinaryIO) -> int:
    """Where the first byte of data lies in a file whose header was found sound."""
    return _LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little")


def _tensors(path: Path, text: bytes) -> dict[str, Tensor]:
    if not text.startswith(b"{"):
        raise _invalid(path, "its header is not a JSON object")
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        entries = msgspec.convert(header, dict[str, _Entry])
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"its header cannot be read ({error})") from error
    return {
        name: Tensor(entry.dtype, entry.shape, *entry.data_offsets)
        for name, entry in entries.items()
    }


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name occurs twice")
    return unique


def _check_layout(path: Path, tensors: Mapping[str, Tensor], data_bytes: int) -> None:
    expected = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        element_bits = _BITS_PER_ELEMENT.get(tensor.dtype)
        if element_bits is None:
            raise _invalid(path, f"tensor {name!r} has the unknown type {tensor.dtype!r}")
        if tensor.begin != expected or (tensor.end - tensor.begin) * 8 != (
            prod(tensor.shape) * element_bits
        ):
            raise _invalid(path, f"tensor {name!r} does not lie where and as its shape says")
        expected = tensor.end
    if expected != data_bytes:
        raise _invalid(
            path, f"it holds {data_bytes} bytes of data where its header says {expected}"
        )


def _invalid(path: Path, what: str) -> InvalidAdapter:
    return InvalidAdapter(
        "invalid_safetensors",
        f"{path.name} is not a sound safetensors file: {what}; save the adapter again",
    )
