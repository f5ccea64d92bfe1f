"""The files of a base model's directory: which must be there, and what they add up to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.adapters.errors import BaseModelError

if TYPE_CHECKING:  # commands that show none would wait for it
    from rich.progress import Progress

DIGESTED_FILES = (
    *("config.json", "*.safetensors", "tokenizer*", "chat_template*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
)
PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD_INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 1 << 20


def require_model(directory: Path) -> None:
    """Raise `BaseModelError` unless `directory` holds a configuration and whole safetensors."""
    if not (directory / "config.json").is_file():
        is_adapter = (directory / "adapter_config.json").is_file()
        reason = "it is an adapter, not a base model" if is_adapter else "it has no config.json"
        raise BaseModelError(f"{directory} cannot be served as a base model: {reason}")
    if not list(directory.glob("*.safetensors")):
        pickles = _files(directory, PICKLE_FILES)
        reason = (
            f"its weights are pickle files ({pickles[0].name}), which can run code; load it with "
            "transformers and write it again with save_pretrained, which makes safetensors"
            if pickles
            else "it has no *.safetensors"
        )
        raise BaseModelError(f"{directory} cannot be served as a base model: {reason}")
    missing = [name for name in _shards(directory) if not (directory / name).is_file()]
    if missing:
        raise BaseModelError(
            f"{directory} is incomplete: {SHARD_INDEX} names {missing[0]}, which is not there; "
            "download the model again"
        )


def digest(directory: Path, progress: Progress) -> str:
    """Return "sha256:<hex>" over the names and contents of the files that make the model.

    The same model gives the same digest wherever it lies. `progress` gets one task, in bytes.
    """
    files = _files(directory, DIGESTED_FILES)
    total_bytes = sum(file.stat().st_size for file in files)
    task = progress.add_task("Digest the model's files", total=total_bytes)
    whole = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        if file.name == "config.json":
            content.update(_portable_config(file))
        else:
            with file.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    content.update(block)
                    progress.advance(task, len(block))
        whole.update(f"{file.name}\0{content.hexdigest()}\n".encode())
    progress.update(task, completed=total_bytes)
    return f"sha256:{whole.hexdigest()}"


def fingerprint(directory: Path) -> str:
    """Return a hash of names, sizes and times: it changes when a file is written, and is cheap."""
    stats = [(file.name, file.stat()) for file in _files(directory, DIGESTED_FILES)]
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _files(directory: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {file for pattern in patterns for file in directory.glob(pattern) if file.is_file()}
    return sorted(found, key=lambda file: file.name)


def _shards(directory: Path) -> list[str]:
    index = directory / SHARD_INDEX
    if not index.is_file():
        return []
    weight_map = _read_object(index).get("weight_map")
    return sorted(
        {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else ()
    )


def _portable_config(file: Path) -> bytes:
    """Return config.json without the version of the library that happened to write it."""
    config = _read_object(file)
    config.pop("transformers_version", None)
    return json.dumps(config, sort_keys=True).encode()


def _read_object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BaseModelError(f"{file} is not JSON ({error}); download the model again") from error
    if not isinstance(content, dict):
        raise BaseModelError(f"{file} does not hold a JSON object; download the model again")
    return content
