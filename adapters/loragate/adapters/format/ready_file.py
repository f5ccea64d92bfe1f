"""An adapter as an engine reads it, in one file: weights in its dtype, laid out as it wants them.

It is made once from an artifact, and holds all that a load needs of that: the weights, the
configuration and the manifest. A checksum over everything is checked whenever the file is read; it
finds what a disk or a power cut does to a file, and proves nothing of who wrote it, which is what
the artifact's digest is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Final, Self

import msgspec
import xxhash

from loragate.adapters.format.files import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    AdapterFiles,
    read_manifest,
)
from loragate.adapters.format.peft_config import parse_config
from loragate.adapters.format.safetensors_header import Tensor, read_data_start, read_header

LAYOUT: Final = 1
"""Of what is written here. It stands in a file's name, so that no other version reads it."""

_ITEM_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
_NUMBER_BYTES: Final = 8  # of the checksum, and of the head's length
_CHUNK_BYTES: Final = 1 << 20
_ALIGNMENT_BYTES: Final = 64


class ReadyFileDamaged(Exception):
    """The file does not hold what was once written to it."""


@dataclass(frozen=True, slots=True)
class ReadyForm:
    """How an engine holds weights: ``dtype`` as in safetensors, and whether it reads B, [out,
    rank], by its columns, so that it wants [rank, out].
    """

    dtype: str
    transposes_b: bool

    def __str__(self) -> str:
        return f"{self.dtype}-transposed" if self.transposes_b else self.dtype

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gave. Raises ValueError."""
        dtype, dash, transposed = text.partition("-")
        if dtype not in _ITEM_BYTES or (dash and transposed != "transposed"):
            raise ValueError(f"{text!r} is no form of an engine's weights")
        return cls(dtype, bool(dash))

    def transposes(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.transposes_b and ".lora_B." in name and len(shape) == 2

    @property
    def file_name(self) -> str:
        return f"{self}.{LAYOUT}"


class ReadyTensor(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of the adapter: its name, type and shape in the artifact."""

    name: str
    given: str
    shape: tuple[int, ...]


class _Head(msgspec.Struct, frozen=True, array_like=True):
    form: str
    config: bytes
    manifest: bytes | None
    tensors: tuple[ReadyTensor, ...]


@dataclass(frozen=True, slots=True)
class ReadyAdapter:
    """What a ready file says, but for the weights. ``tensors`` are in the order of their data,
    which begins at the file's byte ``data_start``; those of one layer are together.
    """

    form: ReadyForm
    config: bytes
    manifest: bytes | None
    tensors: tuple[ReadyTensor, ...]
    data_start: int

    @classmethod
    def read_head(cls, content: memoryview) -> Self:
        """From the beginning of a file that was found sound. Raises ReadyFileDamaged."""
        begin = 2 * _NUMBER_BYTES
        length = int.from_bytes(content[_NUMBER_BYTES:begin], "little")
        try:
            head = msgspec.msgpack.decode(content[begin : begin + length], type=_Head)
            form = ReadyForm.parse(head.form)
        except (msgspec.DecodeError, ValueError) as error:
            raise ReadyFileDamaged(f"its head cannot be read: {error}") from error
        data_start = begin + length + _padding(begin + length)
        return cls(form, head.config, head.manifest, head.tensors, data_start)

    def is_transposed(self, tensor: ReadyTensor) -> bool:
        """Whether its memory is that of the matrix with rows and columns exchanged."""
        return self.form.transposes(tensor.name, tensor.shape)

    def files(self, folder: Path) -> AdapterFiles:
        """As `inspect` gives it of the artifact in ``folder``, but for the files themselves. Raises
        InvalidAdapter.
        """
        config = parse_config(self.config)
        return AdapterFiles(
            folder, config, read_manifest(self.manifest, config), dict(self._described()), ()
        )

    def _described(self) -> Iterator[tuple[str, Tensor]]:
        end = 0
        for tensor in self.tensors:
            begin, end = end, end + prod(tensor.shape) * _ITEM_BYTES[tensor.given]
            yield tensor.name, Tensor(tensor.given, tensor.shape, begin, end)


def read_ready(path: Path) -> ReadyAdapter:
    """Reads all of the file. Raises ReadyFileDamaged, and OSError."""
    hashed = xxhash.xxh3_64()
    buffer = bytearray(min(_CHUNK_BYTES, path.stat().st_size))
    first = b""
    with path.open("rb", buffering=0) as file:
        expected = file.read(_NUMBER_BYTES)
        while count := file.readinto(buffer):
            hashed.update(memoryview(buffer)[:count])
            if not first:
                first = bytes(buffer[:count])
        if len(expected) != _NUMBER_BYTES or hashed.digest() != expected:
            raise ReadyFileDamaged("its checksum is not that of its content")
        length = int.from_bytes(first[:_NUMBER_BYTES], "little")
        if _NUMBER_BYTES + length > len(first):  # names of more tensors than one chunk holds
            file.seek(_NUMBER_BYTES)
            first = file.read(_NUMBER_BYTES + length)
    return ReadyAdapter.read_head(memoryview(expected + first))


def require_sound(content: memoryview) -> None:
    """Of a whole file in memory. Raises ReadyFileDamaged."""
    hashed = xxhash.xxh3_64()
    # In pieces: Python's lock may be held for each.
    for begin in range(_NUMBER_BYTES, len(content), _CHUNK_BYTES):
        hashed.update(content[begin : begin + _CHUNK_BYTES])
    if hashed.digest() != content[:_NUMBER_BYTES]:
        raise ReadyFileDamaged("its checksum is not that of its content")


def write_ready(folder: Path, target: Path, form: ReadyForm) -> None:
    """Makes the file at ``target``, new, of the artifact in ``folder``, whose content was found
    sound. Raises OSError and InvalidAdapter.
    """
    # NumPy takes a twentieth of a second to import, which other commands do not wait for.
    from loragate.adapters.format.tensor_cast import read_cast

    given = read_header(folder / WEIGHTS)
    names = sorted(given, key=lambda name: (layer_of(name), name))  # each layer's are together
    manifest = folder / MANIFEST
    head = msgspec.msgpack.encode(
        _Head(
            str(form),
            (folder / CONFIG).read_bytes(),
            manifest.read_bytes() if manifest.exists() else None,
            tuple(ReadyTensor(name, given[name].dtype, given[name].shape) for name in names),
        )
    )
    hashed = xxhash.xxh3_64()
    with (
        (folder / WEIGHTS).open("rb", buffering=0) as source,
        target.open("xb", buffering=0) as out,
    ):
        out.seek(_NUMBER_BYTES)
        start = read_data_start(source)
        padding = _padding(2 * _NUMBER_BYTES + len(head))
        _put(out, len(head).to_bytes(_NUMBER_BYTES, "little") + head + bytes(padding), hashed)
        for name in names:
            tensor = given[name]
            transposed = form.transposes(name, tensor.shape)
            _put(
                out,
                read_cast(
                    *(source, start + tensor.begin, tensor.shape, tensor.dtype, form.dtype),
                    transposed=transposed,
                ),
                hashed,
            )
        out.seek(0)
        _put(out, hashed.digest(), xxhash.xxh3_64())


def layer_of(name: str) -> str:
    """`model.layers.7` of `model.layers.7.mlp.up_proj.lora_A.weight`."""
    parts = name.split(".")
    return ".".join(parts[: 1 + next((i for i, part in enumerate(parts) if part.isdigit()), -1)])


def _put(out: FileIO, content: bytes | memoryview, hashed: xxhash.xxh3_64) -> None:
    hashed.update(content)
    left = memoryview(content)
    while left:
        left = left[out.write(left) :]


def _padding(length: int) -> int:
    return -length % _ALIGNMENT_BYTES
