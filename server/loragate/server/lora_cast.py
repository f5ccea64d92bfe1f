"""An adapter's weights in the engine's dtype, as a file that the engine's core only has to read."""

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path

import torch

from loragate.adapters.safetensors_header import Tensor, read_data_start, read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Larger ones torch would share among threads, which take the engine's cores all at once.
_PIECE = 1 << 14  # elements


def cast(source: Path, target: Path, dtype: torch.dtype, rest: Callable[[], None]) -> None:
    """Writes the safetensors file `source` to `target` with every tensor in `dtype`, rounded to the
    nearest as torch does. `rest` is called between pieces of the work.
    """
    tensors = read_header(source)
    # Read and written piece by piece in the same memory: new pages would cost three times the rest.
    with source.open("rb", buffering=0) as file, target.open("xb", buffering=0) as out:
        start = read_data_start(file)
        out.write(_header(tensors, dtype))
        for tensor in sorted(tensors.values(), key=lambda each: each.begin):
            before = torch.empty(_PIECE, dtype=DTYPES[tensor.dtype])
            after = torch.empty(_PIECE, dtype=dtype)
            file.seek(start + tensor.begin)
            for count in _pieces(_elements(tensor)):
                _read(file, _bytes(before, count))
                after[:count] = before[:count]
                out.write(_bytes(after, count))
                rest()


def is_cast(source: Path, dtype: torch.dtype) -> bool:
    """Whether every tensor has that dtype already."""
    return {tensor.dtype for tensor in read_header(source).values()} == {_NAMES[dtype]}


def _header(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> bytes:
    described: dict[str, object] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        begin, end = end, end + _elements(tensor) * dtype.itemsize
        described[name] = {
            "dtype": _NAMES[dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    return len(text).to_bytes(8, "little") + text


def _pieces(count: int) -> Iterator[int]:
    """How many elements each has."""
    for first in range(0, count, _PIECE):
        yield min(_PIECE, count - first)


def _bytes(tensor: torch.Tensor, count: int) -> memoryview:
    return tensor[:count].view(torch.uint8).numpy().data


def _read(file: FileIO, into: memoryview) -> None:
    if file.readinto(into) != len(into):
        raise OSError(errno.EIO, "it became shorter while it was read")


def _elements(tensor: Tensor) -> int:
    return (tensor.end - tensor.begin) // DTYPES[tensor.dtype].itemsize
