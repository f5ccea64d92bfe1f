"""How few tokens a text can become, said from its length alone.

Tokenizing megabytes takes seconds. A text that is longer than a context's worth of the tokenizer's
longest tokens does not have to be tokenized to know that it does not fit, and of one that will be
truncated, no more than that.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

# Unicode's composition makes at most three bytes into one (the sign for Kelvin into a K), and four
# characters into one (a Greek letter with three marks).
_COMPOSED = 4
_MARGIN = 4096  # characters
_KEEPS_ALL = frozenset({"ByteLevel", "Digits", "Split", "Metaspace", "Punctuation"})
_FALLBACKS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class _Stage(Protocol):
    """A stage of the tokenizers library, which tells itself as JSON to be pickled."""

    def __getstate__(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TokenBound:
    """One tokenizer's: the bytes of its longest token (0: nothing can be said), and what may become
    no token at all: some bytes, and all spaces where a special token takes those beside it.
    """

    bytes_of_longest: int
    uncounted: bytes = b""
    counts_spaces: bool = True

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Looks at the whole vocabulary.

        Something can be said of the kinds that today's language models have: byte pairs, of bytes
        or with bytes for what they do not know, and nothing before them that drops characters.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or type(backend.model).__name__ != "BPE":
            return cls(0)
        stages = _stages(backend.pre_tokenizer, "pretokenizers")
        factor = _shrinking(_stages(backend.normalizer, "normalizers"))
        if factor == 0 or not all(map(_keeps_all, stages)):
            return cls(0)
        vocabulary, added = tokenizer.get_vocab(), list(tokenizer.added_tokens_decoder.values())
        is_bytes = any(stage["type"] == "ByteLevel" for stage in stages)
        if not is_bytes and not (backend.model.byte_fallback and vocabulary.keys() >= _FALLBACKS):
            return cls(0)
        # Of bytes, each is written as one character; of characters, each may be many bytes.
        literal = {token.content for token in added}
        longest = max(
            (
                len(token) if is_bytes and token not in literal else len(token.encode())
                for token in vocabulary
            ),
            default=0,
        )
        return cls(
            longest * factor,
            _without_token(vocabulary) if is_bytes else b"",
            counts_spaces=not any(token.lstrip or token.rstrip for token in added),
        )

    def fewest_tokens(self, text: str) -> int:
        """No fewer tokens than these can the text become."""
        if not self.bytes_of_longest:
            return 0
        counted = text if self.counts_spaces else "".join(text.split())
        size = len(counted.encode("utf-8", "replace").translate(None, self.uncounted))
        return -(-size // self.bytes_of_longest)

    def part(self, text: str, truncation: "Truncation") -> str:
        """The end or the beginning of a text in which all tokens lie that will be kept.

        Where a text is cut, the first words may become other tokens than in the whole; there are
        thousands of characters between them and what is kept.
        """
        if not self.bytes_of_longest:
            return text
        size = truncation.tokens * self.bytes_of_longest + _MARGIN
        part = text[-size:] if truncation.keeps_end else text[:size]
        return part if self.fewest_tokens(part) >= truncation.tokens else text


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many of a text's tokens will be kept, and of which end."""

    tokens: int
    keeps_end: bool


def _without_token(vocabulary: Mapping[str, int]) -> bytes:
    """The bytes that a byte-level tokenizer drops without a word."""
    letters = set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()
    return bytes(byte for byte in range(256) if _LETTERS[byte] in letters)


def _letters() -> Sequence[str]:
    """How each byte is written in a byte-level vocabulary: itself where it can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]


_LETTERS = _letters()


def _stages(stage: _Stage | None, several: str) -> Sequence[Mapping[str, object]]:
    """A normalizer's or a pre-tokenizer's parts, each as the library writes it."""
    if stage is None:
        return []
    told = json.loads(stage.__getstate__())
    return told[several] if told["type"] == "Sequence" else [told]


def _keeps_all(stage: Mapping[str, object]) -> bool:
    return stage["type"] in _KEEPS_ALL and stage.get("behavior") != "Removed"


def _shrinking(normalizers: Iterable[Mapping[str, object]]) -> int:
    """How many bytes can become one at most; 0 where that is not known."""
    factor = 1
    for each in normalizers:
        match each["type"]:
            case "NFC":
                factor *= _COMPOSED
            case "Prepend":
                pass
            case "Replace":
                found, put = each["pattern"], str(each["content"])
                old = found.get("String") if isinstance(found, Mapping) else None
                if not isinstance(old, str) or len(put.encode()) < len(old.encode()):
                    return 0
            case _:
                return 0
    return factor
