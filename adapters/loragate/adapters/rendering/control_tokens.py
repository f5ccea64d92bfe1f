"""Text that looks like a control token stays text: `<|im_end|>` in a message ends no turn.

Control tokens are what chat templates mark turns and roles with. Before a template is rendered,
their texts in messages are replaced by numbers that nobody can guess; those that are then in what
it writes are its own. These get other names, the numbers become text again, and the whole is
tokenized at once by a tokenizer that knows the names alone: all else becomes what it always does.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

# Shapes of control tokens, some of which are not flagged as special.
_SHAPES = re.compile(r"<[|\uff5c].*[|\uff5c]>|<(?:start|end)_of_\w+>|\[/?[A-Z_]+\]", re.DOTALL)
_DIGITS = 6
# Characters that no text uses and no normalizer changes.
_FIRST_PRIVATE, _LAST_PRIVATE = 0xF0000, 0xFFFFD


class ControlTokens:
    """One tokenizer's. May be used from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._added: dict[int, Any] = {i: token for i, token in added if token.content.strip()}
        known = set(tokenizer.all_special_tokens)
        self._control = {
            token.content: token_id
            for token_id, token in self._added.items()
            if token.special or token.content in known or _SHAPES.fullmatch(token.content)
        }
        self.pattern = re.compile(_one_of(self._control) if self._control else r"(?!)")
        self._starts = {text[:end] for text in self._control for end in range(1, len(text))}
        self._longest = max(map(len, self._control), default=0)

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(self._control.values())

    def find(self, *values: object) -> Hidden | None:
        """None where no text within the values has anything of a control token."""
        return Hidden(self) if any(map(self._has_control, _texts(values))) else None

    def begun_at_end(self, text: str) -> str:
        """The longest beginning of a control token with which the text ends."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if text[-length:] in self._starts:
                return text[-length:]
        return ""

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What stands for a control token in a text to be tokenized. Nobody can guess them."""
        key = "".join(chr(secrets.choice(range(_FIRST_PRIVATE, _LAST_PRIVATE))) for _ in range(4))
        return {text: f"{key}{chr(_FIRST_PRIVATE + i)}" for i, text in enumerate(self._control)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text in which all control tokens go by their `names`."""
        if self._plain is not None:
            return self._plain.encode(text, add_special_tokens)
        return self._encode_pieces(text, add_special_tokens)

    def _has_control(self, text: str) -> bool:
        if self.pattern.search(text) or self.begun_at_end(text):
            return True
        return self._normalizes and bool(self.pattern.search(self._normalized(text)))

    @cached_property
    def _backend(self) -> Tokenizer | None:
        """None for a tokenizer that is not of the tokenizers library."""
        return getattr(self._tokenizer, "backend_tokenizer", None)

    @cached_property
    def _normalizes(self) -> bool:
        """Whether another text can become a control token's before those are looked for."""
        has_normalizer = self._backend is not None and self._backend.normalizer is not None
        ids = self._control.values()
        return has_normalizer and any(self._added[token_id].normalized for token_id in ids)

    def _normalized(self, text: str) -> str:
        assert self._backend is not None
        assert self._backend.normalizer is not None
        return self._backend.normalizer.normalize_str(text)

    @cached_property
    def _plain(self) -> _PlainTokenizer | None:
        backend = self._backend
        return None if backend is None else _PlainTokenizer.of(backend, self._added, self.names)

    def _encode_pieces(self, text: str, add_special_tokens: bool) -> list[int]:
        """Piece by piece: at their borders there may be other tokens than in the whole."""
        control = {name: self._control[text] for text, name in self.names.items()}
        ids: list[int] = []
        for piece in re.split(f"({_one_of(control)})", text):
            if piece in control:
                ids.append(control[piece])
            elif piece:
                ids += self._tokenizer.encode(
                    piece, add_special_tokens=False, split_special_tokens=True
                )
        if not add_special_tokens:
            return ids
        begin = self._tokenizer.encode("", add_special_tokens=True)[:1]
        return ids if begin != [self._tokenizer.bos_token_id] else [*begin, *ids]


@dataclass(slots=True)
class Hidden:
    """What is hidden of one request's texts: each by a number."""

    tokens: ControlTokens
    _key: str = field(default_factory=lambda: str(secrets.randbelow(9 * 10**19) + 10**19))
    _numbers: dict[str, str] = field(default_factory=dict)

    def hide(self, value: Any) -> Any:
        """The value without control tokens in its texts, among which are its fields' names."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {self.hide(name): self.hide(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(inner) for inner in value]
        return value

    def show(self, text: str) -> str:
        """As it was before `hide`."""
        texts = {number: text for text, number in self._numbers.items()}
        return re.sub(self._any_number, lambda found: texts[found[0]], text)

    def written(self, text: str) -> str:
        """Of what a template wrote: as `show`, and its own control tokens by their names."""
        texts = {number: text for text, number in self._numbers.items()}
        replaced = {**texts, **self.tokens.names}
        either = f"{self._any_number}|{self.tokens.pattern.pattern}"
        return re.sub(either, lambda found: replaced[found[0]], text)

    @property
    def _any_number(self) -> str:
        return f"{self._key}[0-9]{{{_DIGITS}}}"

    def _hide(self, text: str) -> str:
        hidden = self.tokens.pattern.sub(lambda found: self._number(found[0]), text)
        # A template may write another text right behind, and that one the rest of the token.
        begun = self.tokens.begun_at_end(hidden)
        return hidden[: len(hidden) - len(begun)] + self._number(begun) if begun else hidden

    def _number(self, text: str) -> str:
        return self._numbers.setdefault(text, f"{self._key}{len(self._numbers):0{_DIGITS}}")


@dataclass(frozen=True, slots=True)
class _PlainTokenizer:
    """A tokenizer to which control tokens' texts are mere texts, and which knows them by `names`.

    It shares all but the added tokens with the one that it is made of. `ids` has the real ids of
    those that differ; `reserved`, control tokens that the model's own vocabulary has too.
    """

    tokenizer: Tokenizer
    ids: Mapping[int, int]
    reserved: Mapping[int, str]
    divider: str

    @classmethod
    def of(
        cls, backend: Tokenizer, added: Mapping[int, AddedToken], names: Mapping[str, str]
    ) -> _PlainTokenizer | None:
        """None where ids of ours could be taken for others, as of vocabularies with gaps."""
        plain = Tokenizer(backend.model)
        plain.normalizer = backend.normalizer
        plain.pre_tokenizer = backend.pre_tokenizer
        plain.post_processor = backend.post_processor
        own = {i for i, token in added.items() if backend.model.token_to_id(token.content) == i}
        # Those of the model's vocabulary last: a new name gets a new id, behind all others.
        order = [*sorted(added.keys() - own), *sorted(own)]
        divider = f"{next(iter(names.values()), '')}{chr(_LAST_PRIVATE)}"
        tokens = [_renamed(added[token_id], names) for token_id in order]
        plain.add_tokens([*tokens, AddedToken(divider, normalized=False)])
        ids: dict[int, int] = {}
        for token, real in zip(tokens, order, strict=True):
            ours = plain.token_to_id(token.content)
            if ours is not None and ours != real:
                ids[ours] = real
        if ids.keys() & added.keys():
            return None
        reserved = {i: added[i].content for i in own if added[i].content in names}
        return cls(plain, ids, reserved, divider)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        encoding = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if not self.reserved.keys().isdisjoint(
            token_id
            for token_id, is_added in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            if not is_added
        ):
            # The model's vocabulary makes them of text as well: only of the whole, so divide it.
            for control in self.reserved.values():
                text = text.replace(control, f"{control[0]}{self.divider}{control[1:]}")
            encoding = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        divider = self.tokenizer.token_to_id(self.divider)
        return [self.ids.get(each, each) for each in encoding.ids if each != divider]


def _renamed(token: AddedToken, names: Mapping[str, str]) -> AddedToken:
    return AddedToken(
        names.get(token.content, token.content),
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(name)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _one_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of the texts. Common beginnings are written once, so a search looks
    at each character of what it searches a few times, however many texts there are.
    """
    alternatives = set(texts)
    by_first: dict[str, list[str]] = {}
    for text in alternatives - {""}:
        by_first.setdefault(text[0], []).append(text)
    branches: list[str] = []
    for begun_alike in by_first.values():
        start = common_start(min(begun_alike), max(begun_alike))
        rest = _one_of(text[len(start) :] for text in begun_alike)
        branches.append(re.escape(start) + rest)
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)}){'?' if '' in alternatives else ''}"


def common_start(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]
