"""What trainers leave beside an adapter that says how it was trained: a chat template, and tokens.

Neither is published with it, so both are compared with what it would be served with: an adapter
that learnt other prompts than it is sent answers worse, and nothing tells why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.manifest import Contract

if TYPE_CHECKING:
    from loragate.adapters.format.base_profile import BaseProfile

TEMPLATE: Final = "chat_template.jinja"
_ADDED: Final = "added_tokens.json"
_TOKENIZER: Final = "tokenizer.json"
_MOST_BYTES: Final = 64 << 20  # of a tokenizer.json; the largest have half of it
_SHOWN: Final = 3
_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LETTERS: Final = re.compile(r"[^a-z0-9]+")
# Trainers put these marks around what is learnt; they write nothing.
_GENERATION: Final = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


class _Token(msgspec.Struct):
    content: str


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Token] = []


def check_beside(folder: Path, contract: Contract, base: BaseProfile) -> None:
    """Raise InvalidAdapter (``other_chat_template``, ``other_tokenizer``) where what lies beside
    the adapter is not what it would be served with.
    """
    template = _read(folder / TEMPLATE)
    served = contract.chat_template or base.chat_template
    if template and served and _plain(template) != _plain(served):
        raise InvalidAdapter(
            "other_chat_template",
            f"beside the adapter lies {TEMPLATE}, another chat template than it would be served "
            "with; put that text into manifest.json as contract.chat_template, or remove the file "
            "if the adapter was not trained with it",
        )
    unknown = sorted(added_tokens(folder) - base.tokens) if base.tokens else []
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InvalidAdapter(
            "other_tokenizer",
            f"the tokenizer beside the adapter has tokens that {base.name} does not have "
            f"({', '.join(unknown[:_SHOWN])}{more}), and they cannot be served; train with the "
            "tokenizer of the base model, or remove the tokenizer's files if the adapter was",
        )


def named_base(settings: Mapping[str, object]) -> str:
    """The base model that an adapter's configuration names; empty where it names a path."""
    named = settings.get("base_model_name_or_path")
    return named if isinstance(named, str) and _NAME.fullmatch(named) else ""


def is_other_base(named: str, base: str) -> bool:
    """Whether the two names cannot be of one model: hubs and preparations write them otherwise."""
    one, other = (_LETTERS.sub("", name.rpartition("/")[2].lower()) for name in (named, base))
    return bool(one and other) and one not in other and other not in one


def added_tokens(folder: Path) -> frozenset[str]:
    """The tokens that a tokenizer's files add to its vocabulary; those that cannot be read add
    none.
    """
    return frozenset((*_of_list(folder / _ADDED), *_of_tokenizer(folder / _TOKENIZER)))


def all_tokens(folder: Path) -> frozenset[str]:
    """The tokens of a base model's tokenizer, its vocabulary's too; none without a tokenizer.json,
    since what else makes a tokenizer does not tell them all.
    """
    file = folder / _TOKENIZER
    if not file.is_file():
        return frozenset()
    found = set(added_tokens(folder))
    try:
        found.update(msgspec.json.decode(file.read_bytes(), type=_WithModel).model.vocab)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # of another kind than byte pairs
        return frozenset(found)
    return frozenset(found)


class _Model(msgspec.Struct):
    vocab: dict[str, int] = {}


class _WithModel(msgspec.Struct):
    model: _Model


def _of_list(path: Path) -> Iterable[str]:
    try:
        return msgspec.json.decode(_bytes(path), type=dict[str, int])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ()


def _of_tokenizer(path: Path) -> Iterable[str]:
    try:
        found = msgspec.json.decode(_bytes(path), type=_Tokenizer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ()
    return (token.content for token in found.added_tokens)


def _bytes(path: Path) -> bytes:
    """Empty where there is no such plain file, or too large a one."""
    is_plain = path.is_file() and not path.is_symlink()
    return path.read_bytes() if is_plain and path.stat().st_size <= _MOST_BYTES else b""


def _read(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _plain(template: str) -> str:
    return _GENERATION.sub("", template).strip()
