"""Tokenizers that anyone can count by: a token a byte, or a token a word."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TURNS = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
WORD_TURNS = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(
    template: str | None = TURNS, more: Iterable[str] = (), *, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """Its tokens are bytes, `more`, and three special ones: a turn's two ends and a text's begin.

    The end of a turn ends a text, and fills it up. With `adds_bos`, each text gets its begin.
    """
    letters = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *more])
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|turn|>", "<|bos|>"])
    if adds_bos:
        bos = ("<|bos|>", tokenizer.token_to_id("<|bos|>"))
        tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[bos])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|bos|>"
    )
    fast.chat_template = template
    return fast


def word_tokenizer(words: Sequence[str], template: str = WORD_TURNS) -> PreTrainedTokenizerFast:
    """Its tokens are `<unk>`, `</s>` at the end of a turn, and the words, between spaces."""
    ids = {word: i for i, word in enumerate(("<unk>", "</s>", *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = template
    return fast
