"""What an adapter must fit: a prepared base model, described without loading it.

Shapes come from the headers of its safetensors; nothing here imports torch or a tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from loragate.adapters.base_models.files import SHARD_INDEX
from loragate.adapters.errors import BaseModelError, InvalidAdapter
from loragate.adapters.format.beside import all_tokens
from loragate.adapters.format.lora_tensors import is_embedding
from loragate.adapters.format.safetensors_header import Tensor, read_header

if TYPE_CHECKING:
    from loragate.adapters.base_models.preparation import BaseModel

Shape = tuple[int, int]
_Decoded = TypeVar("_Decoded")

_WEIGHTS: Final = "model.safetensors"
_TOKENIZER: Final = "tokenizer.json"
# What makes a tokenizer that was saved without a tokenizer.json.
_VOCABULARIES: Final = ("*.model", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json")
_TEMPLATE: Final = "chat_template.jinja"
_FLOATS: Final = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# Quantised weights are packed, so their shapes are not the layer's.
_PACKED: Final = (".qweight", ".weight_packed")
# The modules of these models are not named as their tensors are.
_RENAMED: Final = frozenset({"text_config", "vision_config", "audio_config"})


@dataclass(frozen=True, slots=True)
class BaseProfile:
    """What the publish check knows of a base model.

    ``modules`` are its linear layers with (out, in), by the names that PEFT gives them; None where
    quantisation hides the shape. It is empty where the model's tensors do not tell the modules'
    names, as in a model of text and images. Embeddings and the experts of a mixture are not in it:
    adapters for them are not served. ``tokens`` are the tokenizer's; none where they are not told.
    """

    name: str
    digest: str
    tokenizer_hash: str
    chat_template_hash: str
    modules: Mapping[str, Shape | None]
    chat_template: str = ""
    tokens: frozenset[str] = frozenset()

    @classmethod
    def read(cls, base: BaseModel, chat_template: str | None = None) -> BaseProfile:
        """Read the files of a prepared model; ``chat_template`` is the one that is served, where
        that is not the model's own. Raises BaseModelError.
        """
        try:
            template = chat_template or _own_template(base.path)
            return cls(
                base.name,
                base.digest,
                tokenizer_hash(base.path),
                template_hash(template),
                MappingProxyType(_linear_modules(base.path)),
                template,
                all_tokens(base.path),
            )
        except OSError as error:
            raise BaseModelError(
                f"{error.filename} of base model {base.name!r} cannot be read "
                f"({error.strerror}); allow this user to, or prepare the model again"
            ) from error


def tokenizer_hash(model_path: Path) -> str:
    """SHA-256, in hexadecimal, of the files that turn text into token ids; "" without any."""
    files = [model_path / _TOKENIZER]
    if not files[0].is_file():
        files = sorted(file for pattern in _VOCABULARIES for file in model_path.glob(pattern))
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        whole.update(f"{file.name}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest() if files else ""


def template_hash(chat_template: str) -> str:
    """SHA-256, in hexadecimal, of a chat template's text, as `Renderer.template_hash` gives it."""
    return hashlib.sha256(chat_template.encode()).hexdigest()


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None


def _own_template(model_path: Path) -> str:
    file, config = model_path / _TEMPLATE, model_path / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if not config.is_file():
        return ""
    match _decode(config, _TokenizerConfig).chat_template:
        case None:
            return ""
        case str(template):
            return template
        case named:
            return next((entry.template for entry in named if entry.name == "default"), "")


def _linear_modules(model_path: Path) -> dict[str, Shape | None]:
    config = _decode(model_path / "config.json", dict[str, object])
    if _RENAMED & config.keys():
        return {}
    return dict(_linears(_tensors(model_path)))


def _linears(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Shape | None]]:
    for name, tensor in tensors:
        module = name.rpartition(".")[0]
        if is_embedding(module) or ".experts." in module:
            continue
        if name.endswith(_PACKED):
            yield module, None
        elif name.endswith(".weight") and len(tensor.shape) == 2:
            yield module, _shape(tensor)


def _shape(tensor: Tensor) -> Shape | None:
    return (tensor.shape[0], tensor.shape[1]) if tensor.dtype in _FLOATS else None


def _tensors(model_path: Path) -> Iterator[tuple[str, Tensor]]:
    for path in _weight_files(model_path):
        try:
            yield from read_header(path).items()
        except InvalidAdapter as error:
            raise BaseModelError(
                f"{path} is not a sound safetensors file, so adapters cannot be checked against "
                "it; download the model again"
            ) from error


def _weight_files(model_path: Path) -> list[Path]:
    """Those that the engine reads: some models bring a second copy in another layout."""
    index = model_path / SHARD_INDEX
    if index.is_file():
        return [
            model_path / name for name in sorted(set(_decode(index, _Index).weight_map.values()))
        ]
    single = model_path / _WEIGHTS
    return [single] if single.is_file() else sorted(model_path.glob("*.safetensors"))


def _decode(path: Path, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BaseModelError(
            f"{path} cannot be used ({error}); download the model again"
        ) from error
