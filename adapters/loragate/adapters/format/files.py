"""The files of a folder to publish: which are taken, and whether they can be read as an adapter.

Whether the adapter can be served is the question of `publish_check`. No tensor is loaded here.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.beside import named_base
from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.format.peft_config import CONFIG, AdapterConfig, read_config
from loragate.adapters.format.safetensors_header import Tensor, read_header

__all__ = [
    "CONFIG",
    "MANIFEST",
    "TAKEN",
    "WEIGHTS",
    "AdapterFiles",
    "SourceFile",
    "inspect",
    "read_manifest",
]

WEIGHTS: Final = "adapter_model.safetensors"
MANIFEST: Final = "manifest.json"

_REQUIRED: Final = (CONFIG, WEIGHTS)
TRAINED_ROWS: Final = "trained_rows.txt"  # short digests of what it was trained on, a line each
TAKEN: Final = (CONFIG, WEIGHTS, MANIFEST, "README.md", TRAINED_ROWS)
"""All else in a folder stays behind, unread: a trainer leaves pickles and its log beside them."""
_HUB_SNAPSHOTS, _HUB_BLOBS = "snapshots", "blobs"
_TEXT_LIMIT_BYTES: Final = 1 << 20
_TRAINED_ROWS_LIMIT_BYTES: Final = 64 << 20  # five million rows
_WEIGHTS_LIMIT_BYTES: Final = 16 << 30  # more than rank 512 on every layer of a 70B model


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
        config = read_config(folder / CONFIG)
        manifest_file = next((file.path for file in files if file.name == MANIFEST), None)
        manifest = read_manifest(manifest_file and manifest_file.read_bytes(), config)
        tensors = read_header(folder / WEIGHTS)
    except OSError as error:
        raise InvalidAdapter(
            "unreadable", f"{error.filename} cannot be read ({error.strerror}); allow this user to"
        ) from error
    return AdapterFiles(folder, config, manifest, tensors, files)


def _files(folder: Path) -> tuple[SourceFile, ...]:
    if not folder.is_dir():
        raise InvalidAdapter(
            "not_a_folder", f"{folder} is not a folder; give the folder that holds {CONFIG}"
        )
    taken = sorted(entry for entry in folder.iterdir() if entry.name in TAKEN)
    for entry in taken:
        _check_entry(entry)
    missing = [name for name in _REQUIRED if name not in {entry.name for entry in taken}]
    if missing:
        raise InvalidAdapter(
            "missing_file",
            f"{folder} has no {' and no '.join(missing)}; save the adapter with "
            "PEFT's save_pretrained and publish that folder",
        )
    return tuple(SourceFile(entry.name, entry, entry.stat().st_size) for entry in taken)


def _check_entry(entry: Path) -> None:
    if entry.is_symlink() and not _is_in_hub_cache(entry):
        # Whoever packed the folder could have any file of this machine copied into the store.
        raise InvalidAdapter(
            "symlink",
            f"{entry.name} is a symbolic link to a place outside its folder; put the file itself "
            "into the folder",
        )
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidAdapter("missing_file", f"{entry.name} is not a file; put a plain file there")
    limits = {WEIGHTS: _WEIGHTS_LIMIT_BYTES, TRAINED_ROWS: _TRAINED_ROWS_LIMIT_BYTES}
    limit_bytes = limits.get(entry.name, _TEXT_LIMIT_BYTES)
    if status.st_size > limit_bytes:
        raise InvalidAdapter(
            "file_too_large",
            f"{entry.name} has {status.st_size} bytes; shorten it to {limit_bytes} at most",
        )


def _is_in_hub_cache(link: Path) -> bool:
    """Whether it points to where the hub's cache keeps the files of the same model: from
    `snapshots/<commit>/` to `blobs/` beside them.
    """
    snapshots = link.parent.resolve().parent
    target = link.resolve()
    is_beside = target.parent == snapshots.parent / _HUB_BLOBS
    return snapshots.name == _HUB_SNAPSHOTS and is_beside and target.is_file()


def read_manifest(text: bytes | None, config: AdapterConfig) -> AdapterManifest:
    """What the file says, or, without one, what the configuration does. Raises InvalidAdapter."""
    derived = AdapterManifest(config.rank, config.alpha, config.target_modules)
    if text is None:
        named = named_base(config.settings)
        # A path would say where it lay on the machine of whoever trained it.
        return (
            replace(derived, lineage=MappingProxyType({"base_model": named})) if named else derived
        )
    manifest = AdapterManifest.from_json(text, derived)
    manifest.check_bounds()
    for name in ("rank", "alpha"):
        if getattr(manifest, name) != getattr(derived, name):
            raise InvalidAdapter(
                "invalid_manifest",
                f"{MANIFEST} says {name} {getattr(manifest, name)} where {CONFIG} says "
                f"{getattr(derived, name)}; leave it out of {MANIFEST} or make them agree",
            )
    return manifest
