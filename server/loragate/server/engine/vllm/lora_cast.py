"""An adapter's weights as the engine holds them, in a file that its core only has to read."""

import ctypes
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import torch

from loragate.adapters.format.safetensors_header import Tensor, read_data_start, read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# At the end of a tensor's name: B of LoRA, [out, rank], written as [rank, out].
TRANSPOSED = ".T"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COMPILED = {torch.float32: 0, torch.bfloat16: 1}  # as in cast.c


class _Compiled(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("begin", "rows", "columns", "type", "is_transposed")
    )


@dataclass(frozen=True, slots=True)
class _Move:
    """What becomes of one tensor."""

    name: str
    tensor: Tensor
    is_transposed: bool

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.tensor.dtype]

    @property
    def rows(self) -> int:
        return self.tensor.shape[0] if len(self.tensor.shape) == 2 else 1

    @property
    def columns(self) -> int:
        return prod(self.tensor.shape) // self.rows


class LoraCast:
    """Writes safetensors files in one dtype, every number rounded to the nearest as torch does."""

    def __init__(
        self, dtype: torch.dtype, *, transposes_b: bool, library: ctypes.CDLL | None = None
    ) -> None:
        """`transposes_b` for engines that read B by columns; without the library, torch does it."""
        self._dtype = dtype
        self._transposes_b = transposes_b
        self._function = None
        if library is not None:
            self._function = library.cast_tensors
            pointer, number = ctypes.c_void_p, ctypes.c_int64
            self._function.argtypes = (ctypes.c_int, pointer, number, number, ctypes.c_int)
            self._function.restype = ctypes.c_int

    def needs_no_conversion(self, source: Path) -> bool:
        """Whether the file can be read by the engine as it is."""
        dtypes = {tensor.dtype for tensor in read_header(source).values()}
        return dtypes == {_NAMES[self._dtype]} and not self._transposes_b

    def write(self, source: Path, target: Path) -> None:
        """Raises OSError."""
        moves = self._moves(read_header(source))
        with source.open("rb", buffering=0) as file, target.open("xb", buffering=0) as out:
            out.write(_header(moves, self._dtype))
            start = read_data_start(file)
            if self._function is not None and all(
                dtype in _COMPILED for dtype in (self._dtype, *(move.dtype for move in moves))
            ):
                self._write_compiled(file, start, moves, out)
            else:
                self._write_by_torch(file, start, moves, out)

    def _moves(self, tensors: Mapping[str, Tensor]) -> list[_Move]:
        return [
            _Move(
                name, tensor, self._transposes_b and ".lora_B." in name and len(tensor.shape) == 2
            )
            for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin)
        ]

    def _write_compiled(
        self, file: FileIO, start: int, moves: Sequence[_Move], out: FileIO
    ) -> None:
        assert self._function is not None
        tensors = (_Compiled * len(moves))(
            *(
                (start + m.tensor.begin, m.rows, m.columns, _COMPILED[m.dtype], m.is_transposed)
                for m in moves
            )
        )
        failed = self._function(
            file.fileno(), tensors, len(moves), _COMPILED[self._dtype], out.fileno()
        )
        if failed:
            raise OSError(failed, os.strerror(failed))

    def _write_by_torch(
        self, file: FileIO, start: int, moves: Sequence[_Move], out: FileIO
    ) -> None:
        for move in moves:
            given = bytearray(move.tensor.end - move.tensor.begin)
            file.seek(start + move.tensor.begin)
            if file.readinto(given) != len(given):  # it has become shorter
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            tensor = torch.frombuffer(given, dtype=move.dtype).view(move.rows, move.columns)
            made = tensor.to(self._dtype)
            made = (made.T if move.is_transposed else made).contiguous()
            left = made.flatten().view(torch.uint8).numpy().data
            while left:
                left = left[out.write(left) :]


def _header(moves: Sequence[_Move], dtype: torch.dtype) -> bytes:
    described = dict(_described(moves, dtype))
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    return len(text).to_bytes(8, "little") + text


def _described(moves: Sequence[_Move], dtype: torch.dtype) -> Iterator[tuple[str, object]]:
    end = 0
    for move in moves:
        begin, end = end, end + move.rows * move.columns * dtype.itemsize
        name, shape = move.name, move.tensor.shape
        if move.is_transposed:
            name, shape = name + TRANSPOSED, shape[::-1]
        yield name, {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
