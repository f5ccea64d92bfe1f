"""What somebody gave to import: which trainer's layout it is in, and which of its files count.

Nothing is loaded here. A layout is known by the names of files and the first keys of their
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.files import MANIFEST, TAKEN, WEIGHTS
from loragate.adapters.format.peft_config import CONFIG

_PICKLED: Final = "adapter_model.bin"
_SHARDS: Final = "adapter_model-*-of-*"
_MLX_WEIGHTS: Final = "adapters.safetensors"
_CHECKPOINTS: Final = "checkpoint-*"
_LIMIT_BYTES: Final = 1 << 20
_SINGLE: Final = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


class Layout(StrEnum):
    """How a trainer writes an adapter down."""

    PEFT = "PEFT"
    MLX = "MLX"
    GGUF = "llama.cpp's GGUF"
    KOHYA = "kohya's"
    TORCHTUNE = "torchtune's"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that is not part of the adapter, and what it is."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter to import. `config` is its configuration's file, absent in some layouts."""

    path: Path
    layout: Layout
    config: Path | None
    weights: tuple[Path, ...]
    manifest: Path | None
    left_out: tuple[LeftOut, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is a folder with the two files that PEFT writes today, under their names."""
        return self.layout is Layout.PEFT and self.weights == (self.path / WEIGHTS,)


def find_source(path: Path) -> Source:
    """Look at a folder or a file. Raises InvalidAdapter, whose message says what was looked for."""
    if not path.exists():
        raise InvalidAdapter(
            "not_found", f"there is no {path}; give a folder or a file that a trainer has written"
        )
    if path.is_file():
        return _single_file(path)
    return _folder(path)


def _single_file(path: Path) -> Source:
    if path.suffix.lower() not in _SINGLE:
        raise InvalidAdapter(
            "unknown_layout",
            f"{path.name} is no file of weights ({', '.join(_SINGLE)}); give the folder that the "
            "trainer has written, unpacked",
        )
    if path.suffix.lower() == ".gguf":
        return Source(path, Layout.GGUF, None, (path,), None, ())
    config = path.parent / CONFIG
    if path.name == WEIGHTS and config.is_file():
        return _folder(path.parent)
    if path.suffix.lower() == ".safetensors" and not config.is_file():
        return Source(path, Layout.KOHYA, None, (path,), None, ())
    if not config.is_file():
        raise InvalidAdapter(
            "missing_file",
            f"{path.name} has no {CONFIG} beside it, which says the scale; give the folder with "
            "both",
        )
    layout = _layout_of(_read(config), path)
    return Source(path, layout, config, (path,), None, ())


def _folder(path: Path) -> Source:
    inner = _named_adapter(path)
    if inner is not None:
        return _folder(inner)
    config = path / CONFIG
    weights = _weights(path)
    if not weights or not config.is_file():
        raise _nothing_there(path, bool(weights))
    layout = _layout_of(_read(config), weights[0])
    manifest = path / MANIFEST
    taken = {CONFIG, *(file.name for file in weights)}
    return Source(
        path,
        layout,
        config,
        weights,
        manifest if manifest.is_file() else None,
        tuple(_left_out(path, taken)),
    )


def _weights(path: Path) -> tuple[Path, ...]:
    for name in (WEIGHTS, _MLX_WEIGHTS):
        if (path / name).is_file():
            return (path / name,)
    if shards := sorted(path.glob(f"{_SHARDS}.safetensors")):
        return _whole(shards)
    if (path / _PICKLED).is_file():
        return (path / _PICKLED,)
    if shards := sorted(path.glob(f"{_SHARDS}.bin")):
        return _whole(shards)
    if gguf := sorted(path.glob("*.gguf")):
        return tuple(gguf[:1])
    return tuple(sorted(path.glob("adapter_*.pt"))[:1])


def _whole(shards: list[Path]) -> tuple[Path, ...]:
    expected = shards[0].stem.rpartition("-")[2]
    if expected.isdigit() and len(shards) != int(expected):
        raise InvalidAdapter(
            "missing_file",
            f"{len(shards)} of {int(expected)} parts of the weights are there; copy the others too",
        )
    return tuple(shards)


def _named_adapter(path: Path) -> Path | None:
    """The one folder below in which PEFT has put an adapter that has a name of its own."""
    if (path / CONFIG).is_file() or _weights(path):
        return None
    inner = [each.parent for each in sorted(path.glob(f"*/{CONFIG}"))]
    if len(inner) == 1 and not inner[0].match(_CHECKPOINTS):
        return inner[0]
    if inner:
        names = ", ".join(each.name for each in inner[:10])
        raise InvalidAdapter(
            "several_adapters",
            f"{path} holds {len(inner)} adapters ({names}); import one of these folders",
        )
    return None


def _nothing_there(path: Path, has_weights: bool) -> InvalidAdapter:
    if has_weights:
        return InvalidAdapter(
            "missing_file",
            f"{path} has weights and no {CONFIG}, which says the rank and the scale; copy it from "
            "where the adapter was trained",
        )
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return InvalidAdapter(
            "whole_model",
            f"{path} is a whole model and no adapter; serve it as the base model, or publish the "
            "adapter that was merged into it",
        )
    return InvalidAdapter(
        "missing_file",
        f"{path} has no {CONFIG} and no {WEIGHTS}; save the adapter with PEFT's save_pretrained "
        "and give that folder",
    )


def _layout_of(config: dict[str, Any], weights: Path) -> Layout:
    if weights.suffix == ".gguf":
        return Layout.GGUF
    if "lora_parameters" in config or ("fine_tune_type" in config and "peft_type" not in config):
        return Layout.MLX
    if weights.suffix == ".pt":
        return Layout.TORCHTUNE
    return Layout.PEFT


def _read(config: Path) -> dict[str, Any]:
    if config.stat().st_size > _LIMIT_BYTES:
        raise InvalidAdapter("file_too_large", f"{config.name} has more than {_LIMIT_BYTES} bytes")
    try:
        settings = json.loads(config.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(
            "invalid_config", f"{config.name} is no JSON: {error}; copy it once more"
        ) from error
    if not isinstance(settings, dict):
        raise InvalidAdapter("invalid_config", f"{config.name} is no JSON object")
    return settings


def _left_out(path: Path, taken: Iterable[str]) -> Iterable[LeftOut]:
    for entry in sorted(path.iterdir()):
        if entry.name not in taken and entry.name not in TAKEN:
            yield LeftOut(entry.name, _what(entry))


def _what(entry: Path) -> str:
    name = entry.name
    known = {
        "training_args.bin": "the trainer's settings, a pickle",
        "optimizer.pt": "the optimizer's state, a pickle",
        "scheduler.pt": "the schedule's state, a pickle",
        "trainer_state.json": "the trainer's log",
        "special_tokens_map.json": "the tokenizer's",
        "tokenizer_config.json": "the tokenizer's",
        "tokenizer.json": "the tokenizer's",
        "added_tokens.json": "the tokenizer's added tokens",
        "chat_template.jinja": "a chat template",
        "vocab.json": "the tokenizer's",
        "merges.txt": "the tokenizer's",
    }
    if name in known:
        return known[name]
    if name.startswith("rng_state"):
        return "random numbers' state, a pickle"
    if entry.match(_CHECKPOINTS) or entry.match("global_step*"):
        return "a checkpoint of the same training"
    if entry.is_dir():
        return "a folder"
    return "not part of the adapter"
