from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.adapters.rendering.renderer import IGNORED, Renderer
from loragate.trainer.data.example import Example, Message
from loragate.trainer.errors import TrainingError
from loragate.trainer.training.encoding import Encoder
from support.models.tokenizers import byte_tokenizer
from support.training.tiny_runs import TEMPLATE, examples

RENDERER = Renderer(byte_tokenizer(TEMPLATE))
WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="<|>", exclude_categories=["Cs"]), min_size=1
).filter(str.strip)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


def conversation(turns: list[tuple[str, str]]) -> Example:
    messages: list[Message] = []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return Example(tuple(messages))


@settings(deadline=None, max_examples=40)
@given(TURNS)
def test_what_is_learnt_is_each_answer_and_its_end_of_turn_and_nothing_else(
    turns: list[tuple[str, str]],
) -> None:
    (row,) = Encoder(RENDERER, 100_000).encode([conversation(turns)], "train").rows
    learnt = [label for label in row.labels if label != IGNORED]
    assert RENDERER.decode(learnt) == "".join(f"{answer}<|end|>" for _, answer in turns)
    assert len(row.labels) == len(row.ids)
    assert row.supervised == len(learnt)


@settings(deadline=None, max_examples=40)
@given(TURNS)
def test_a_row_begins_with_the_very_prompt_that_the_server_makes(
    turns: list[tuple[str, str]],
) -> None:
    example = conversation(turns)
    (row,) = Encoder(RENDERER, 100_000).encode([example], "train").rows
    prompt = RENDERER.render(example.turns()[:-1])
    assert row.ids[: len(prompt)] == prompt


def test_a_row_that_is_too_long_is_refused_by_number_and_length() -> None:
    short, long = examples(1)[0], conversation([("x" * 300, "y")])
    with pytest.raises(TrainingError, match=r"1 rows of train .* 200 .*row 2\) has 3\d\d"):
        Encoder(RENDERER, 200).encode([short, long], "train")


def test_rows_that_are_too_long_are_left_out_whole_and_counted() -> None:
    short, long = examples(1)[0], conversation([("x" * 300, "y")])
    rows = Encoder(RENDERER, 200, "drop").encode([short, long, long], "train")
    assert rows.too_long == 2
    assert rows == replace(Encoder(RENDERER, 200).encode([short], "train"), too_long=2)


ENDLESS = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def test_where_a_template_never_ends_a_turn_the_tokenizer_s_end_of_a_text_is_learnt() -> None:
    endless = Renderer(byte_tokenizer(TEMPLATE), ENDLESS)
    encoded = Encoder(endless, 200).encode(examples(1), "train")
    assert encoded.rows[0].labels[-1] == endless.tokenizer.eos_token_id
    assert list(encoded.ends) == [endless.tokenizer.eos_token_id]


def test_where_nothing_ends_a_turn_the_row_is_refused() -> None:
    tokenizer = byte_tokenizer(TEMPLATE)
    tokenizer.eos_token = None
    with pytest.raises(TrainingError, match=r"row 1: .* never learn to stop; set the tokenizer's"):
        Encoder(Renderer(tokenizer, ENDLESS), 200).encode(examples(1), "train")


def test_rows_whose_earlier_turns_a_template_rewrites_are_refused_each_by_number() -> None:
    forgetful = Renderer(byte_tokenizer(TEMPLATE), "{{ messages[-1].content }}<|end|>")
    with pytest.raises(TrainingError, match=r"7 rows of train .* row 1: .*; row 5: .*and 2 more"):
        Encoder(forgetful, 200).encode(examples(7), "train")


def test_the_system_prompt_comes_before_conversations_that_have_none() -> None:
    own = Example((Message("system", "Shout."), *examples(1)[0].messages))
    encoder = Encoder(RENDERER, 500, system_prompt="Whisper.")
    without, with_own = encoder.encode([examples(1)[0], own], "train").rows
    assert RENDERER.decode(without.ids).startswith("<|turn|>system\nWhisper.<|end|>")
    assert RENDERER.decode(with_own.ids).startswith("<|turn|>system\nShout.<|end|>")
