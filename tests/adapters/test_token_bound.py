"""The bound on a text's tokens is never above what the tokenizer makes of it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loragate.adapters.rendering.token_bound import TokenBound, Truncation

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa"), ("Ġ", "Ġ"), ("K", "K")]


def fast(
    tokenizer: Tokenizer, *added: AddedToken, normalizer: normalizers.Normalizer | None = None
) -> PreTrainedTokenizerFast:
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level(letters: list[str] = LETTERS) -> Tokenizer:
    words = [*letters, *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def with_fallback() -> Tokenizer:
    words = ["<unk>", "▁", "a", "aa", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: i for i, word in enumerate(words)}
    model = models.BPE(
        vocabulary, [("a", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    return Tokenizer(model)


END = AddedToken("<|end|>", special=True)
GREEDY = AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)
SPACE = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {
    "bytes": fast(byte_level(), END),
    "bytes-composed": fast(byte_level(), END, normalizer=normalizers.NFC()),
    "bytes-missing": fast(byte_level([letter for letter in LETTERS if letter not in "bĤð"]), END),
    "specials-that-take-spaces": fast(byte_level(), GREEDY),
    "fallback": fast(with_fallback(), END, normalizer=SPACE),
}
PIECES = [
    "a",
    "a" * 40,
    "b",
    " ",
    " " * 30,
    "\n",
    "\x04",
    "K",
    "\u1f82",
    "\u03b1\u0313\u0300\u0345",
]
TEXTS = st.lists(
    st.sampled_from([*PIECES, "<|end|>", "\U00050000"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=20,
).map("".join)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
@example(text="\u212a" * 100)
@example(text="<|end|>" + " " * 500 + "<|end|>")
@example(text="<|end|>" + "\u3000" * 500)
@example(text="\x04" * 500 + "b" * 500)
def test_no_text_becomes_fewer_tokens_than_are_foretold(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    bound = TokenBound.of(tokenizer)
    assert bound.bytes_of_longest > 0
    assert bound.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_a_long_text_is_foretold_many_tokens() -> None:
    bound = TokenBound.of(TOKENIZERS["bytes"])
    assert bound.bytes_of_longest == 8
    assert bound.fewest_tokens("a" * 8000) == 1000


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("keeps_end", [True, False])
def test_of_a_text_that_will_be_truncated_a_part_is_enough(kind: str, keeps_end: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    text = "".join(f"a{i} aaaa {'K' * (i % 7)} \u1f82\n" for i in range(4_000))
    part = TokenBound.of(tokenizer).part(text, Truncation(50, keeps_end))
    assert len(part) < len(text) / 5
    kept = slice(-50, None) if keeps_end else slice(50)
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(part, add_special_tokens=False)[kept] == whole[kept]


@pytest.mark.parametrize("text", ["a" * 100, "\x04" * 50_000, "<|end|>" + " " * 50_000])
def test_a_text_whose_part_may_not_be_enough_is_kept_whole(text: str) -> None:
    for kind in ("bytes-missing", "specials-that-take-spaces"):
        bound = TokenBound.of(TOKENIZERS[kind])
        part = bound.part(text, Truncation(50, keeps_end=True))
        assert part == text or bound.fewest_tokens(part) >= 50


def test_tokenizers_that_may_drop_characters_are_foretold_nothing() -> None:
    words = fast(Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")))
    dropping = byte_level()
    dropping.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
    )
    lowered = fast(byte_level(), normalizer=normalizers.Lowercase())
    shortened = fast(byte_level(), normalizer=normalizers.Replace("aa", "a"))
    for tokenizer in (words, fast(dropping), lowered, shortened):
        assert TokenBound.of(tokenizer).fewest_tokens("a" * 10_000) == 0
