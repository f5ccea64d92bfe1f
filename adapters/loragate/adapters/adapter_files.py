"""The static check of a folder to publish: which files, and whether they can be an adapter.

Nothing here knows a base model or loads a tensor.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.manifest import AdapterManifest
from loragate.adapters.safetensors_header import Tensor, read_header

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
MANIFEST: Final = "manifest.json"

_REQUIRED: Final = (CONFIG, WEIGHTS)
_TAKEN: Final = (CONFIG, WEIGHTS, MANIFEST, "README.md")
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl"})
_TEXT_LIMIT_BYTES: Final = 1 << 20
_LORA_TENSOR: Final = re.compile(r".+\.lora_[AB]\..+")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What loragate reads from PEFT's ``adapter_config.json``."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceFile:
    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A folder that passed the check, and the files of it to take; all else in it stays behind."""

    folder: Path
    config: AdapterConfig
    manifest: AdapterManifest
    tensors: Mapping[str, Tensor]
    files: tuple[SourceFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def inspect(folder: Path) -> AdapterFiles:
    """Check the folder. Raises InvalidAdapter, whose code says which rule was broken."""
    try:
        files = _files(folder)
        config = _read_config(folder / CONFIG)
        manifest = _read_manifest(files, config)
        tensors = read_header(folder / WEIGHTS)
    except OSError as error:
        raise InvalidAdapter(
            "unreadable", f"{error.filename} cannot be read ({error.strerror}); allow this user to"
        ) from error
    _check_tensor_names(tensors)
    return AdapterFiles(folder, config, manifest, tensors, files)


def _files(folder: Path) -> tuple[SourceFile, ...]:
    if not folder.is_dir():
        raise InvalidAdapter(
            "not_a_folder", f"{folder} is not a folder; give the folder that holds {CONFIG}"
        )
    entries = sorted(folder.iterdir())
    for entry in entries:
        _check_entry(entry)
    taken = [entry for entry in entries if entry.name in _TAKEN]
    missing = [name for name in _REQUIRED if name not in {entry.name for entry in taken}]
    if missing:
        raise InvalidAdapter(
            "missing_file",
            f"{folder} has no {' and no '.join(missing)}; save the adapter with "
            "PEFT's save_pretrained and publish that folder",
        )
    return tuple(SourceFile(entry.name, entry, entry.stat().st_size) for entry in taken)


def _check_entry(entry: Path) -> None:
    if entry.is_symlink():
        raise InvalidAdapter(
            "symlink", f"{entry.name} is a symbolic link; put the file itself into the folder"
        )
    if entry.suffix.lower() in _PICKLE_SUFFIXES:
        raise InvalidAdapter(
            "pickle_file",
            f"{entry.name} is a pickle file, which can run code when it is loaded; save the "
            "adapter as safetensors (save_pretrained does by default) and remove this file",
        )
    if entry.name not in _TAKEN:
        return
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidAdapter("missing_file", f"{entry.name} is not a file; put a plain file there")
    if entry.name != WEIGHTS and status.st_size > _TEXT_LIMIT_BYTES:
        raise InvalidAdapter(
            "file_too_large",
            f"{entry.name} has {status.st_size} bytes; shorten it to {_TEXT_LIMIT_BYTES} at most",
        )


class _PeftConfig(msgspec.Struct):
    peft_type: str
    r: int
    lora_alpha: float
    target_modules: list[str] | str | None = None


def _read_config(path: Path) -> AdapterConfig:
    try:
        written = msgspec.json.decode(path.read_bytes(), type=_PeftConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidAdapter(
            "invalid_config",
            f"{CONFIG} is not the configuration of a PEFT adapter: {error}; save the adapter again",
        ) from error
    if written.peft_type != "LORA":
        raise InvalidAdapter(
            "not_lora",
            f"{CONFIG} has peft_type {written.peft_type!r}; only LORA adapters can be served",
        )
    if written.r < 1:
        raise InvalidAdapter(
            "invalid_rank", f"{CONFIG} has r = {written.r}; the rank must be at least 1"
        )
    match written.target_modules:
        case None:
            modules = ()
        case str(pattern):
            modules = (pattern,)
        case names:
            modules = tuple(sorted(names))
    return AdapterConfig(written.r, written.lora_alpha, modules)


def _read_manifest(files: tuple[SourceFile, ...], config: AdapterConfig) -> AdapterManifest:
    derived = AdapterManifest(config.rank, config.alpha, config.target_modules)
    path = next((file.path for file in files if file.name == MANIFEST), None)
    if path is None:
        return derived
    manifest = AdapterManifest.from_json(path.read_bytes(), derived)
    for name in ("rank", "alpha"):
        if getattr(manifest, name) != getattr(derived, name):
            raise InvalidAdapter(
                "invalid_manifest",
                f"{MANIFEST} says {name} {getattr(manifest, name)} where {CONFIG} says "
                f"{getattr(derived, name)}; leave it out of {MANIFEST} or make them agree",
            )
    return manifest


def _check_tensor_names(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise InvalidAdapter(
            "unexpected_tensor", f"{WEIGHTS} holds no tensors; train and save again"
        )
    for name in tensors:
        if _LORA_TENSOR.fullmatch(name) is None:
            raise InvalidAdapter(
                "unexpected_tensor",
                f"{WEIGHTS} holds the tensor {name!r}, which is no lora_A or lora_B; train without "
                "modules_to_save, DoRA and embedding adapters, or merge the adapter instead",
            )
