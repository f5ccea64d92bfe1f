"""Rows that say the same, and which of them stays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.trainer.data.similarity import (
    conflicts,
    exact_duplicates,
    jaccard,
    near_duplicates,
    near_pairs,
    pieces,
    questions_of,
)
from support.training.examples import distinct, example

LONG = "the broadband at our house in mill lane has been down since yesterday at noon"

WORDS = ("hello", "bye", "refund", "angry", "thanks", "invoice", "late", "broken", "ok", "cancel",
         "order", "sad")  # fmt: skip

words = st.lists(
    st.sampled_from(["red", "blue", "green", "gold", "pink", "grey", "plum", "teal"]), min_size=3
)


@given(st.lists(words.map(" ".join), max_size=12), st.sampled_from([0.5, 0.7, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=40)
def test_rarest_pieces_find_the_pairs_that_comparing_all_finds(texts: list[str], similarity: float):
    sets = [pieces(text) for text in texts]
    expected = {
        (one, other)
        for other in range(len(sets))
        for one in range(other)
        if jaccard(sets[one], sets[other]) >= similarity
    }
    assert set(near_pairs(texts, similarity)) == expected


def test_case_punctuation_and_spaces_make_no_other_question():
    rows = [example("My bill, please!"), example("my  bill please"), example("My bull, please!")]
    (found,) = exact_duplicates(rows)
    assert {found.kept, found.dropped} == {0, 1}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 + 4?", "What is 12 - 4?"),
        ("What is 12 * 4?", "What is 12 / 4?"),
        ("How do I sort a list in C?", "How do I sort a list in C++?"),
        ("How do I sort a list in C?", "How do I sort a list in C#?"),
        ("Is $5 the price?", "Is \u20ac5 the price?"),
        ("The courier was here \U0001f642", "The courier was here \U0001f621"),
        ("Is it 1.5?", "Is it 15?"),
        ("\u0915\u093f", "\u0915\u0940"),  # Hindi ki and kee: vowels are marks
        ("\u30cf\u30f3", "\u30d0\u30f3"),
    ],
)
def test_what_differs_in_a_sign_is_another_question(one: str, other: str):
    rows = [example(one, "yes"), example(other, "no")]
    assert exact_duplicates(rows) == conflicts(rows) == near_duplicates(rows, 0.8) == []
    assert exact_duplicates([example(one), example(other)]) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("You did it!", "You did it?"), ("Is [ab] it?", "Is (ab) it?"), ("Ask the US", "Ask the us")],
)
def test_only_questions_that_are_equal_to_the_sign_conflict(one: str, other: str):
    assert conflicts([example(one, "yes"), example(other, "no")]) == []


def test_a_row_that_many_rows_equal_in_the_question_still_finds_its_like():
    rows = [example("How do I reset it?", f"answer number {n} is its own") for n in range(8)]
    rows += [example("How do I reset it?", "Go to settings and press the button there")]
    rows += [example("How do I reset it?", "Go to settings and press the button there!")]
    assert [{found.kept, found.dropped} for found in near_duplicates(rows, 0.8)] == [{8, 9}]


INSTRUCTION = "Classify the following text into one of the categories: "


@pytest.mark.parametrize("ending", ["", " Answer with the category's name only, please:"])
def test_an_instruction_in_the_same_line_does_not_make_rows_alike(ending: str):
    rows = [example(f"{INSTRUCTION}{row.prompt}{ending}", "ok") for row in distinct(30)]
    assert near_duplicates(rows, 0.8) == []
    short = [example(f"{INSTRUCTION}{word}{ending}", "ok") for word in WORDS]
    assert near_duplicates(short, 0.8) == []


def test_rows_of_one_template_that_differ_in_a_number_stay_alike():
    rows = [*distinct(30), *(example(f"Where is my parcel with the number {n}?") for n in range(9))]
    assert len(near_duplicates(rows, 0.8)) >= 8


def test_the_answer_must_be_the_same_to_the_letter():
    assert exact_duplicates([example("a", "yes"), example("a", "Yes!")]) == []


def test_of_near_rows_the_longer_stays_whatever_the_order():
    short, long = example(LONG), example(f"{LONG} thx")
    (first,) = near_duplicates([short, long], 0.8)
    (second,) = near_duplicates([long, short], 0.8)
    assert (first.kept, first.dropped) == (1, 0)
    assert (second.kept, second.dropped) == (0, 1)


def test_near_questions_with_other_answers_or_labels_stay():
    assert near_duplicates([example(LONG, "outage"), example(f"{LONG} x", "meter")], 0.8) == []
    rows = [example(LONG, "ok", label="a"), example(f"{LONG} x", "ok", label="b")]
    assert near_duplicates(rows, 0.8) == []


def test_a_chain_of_small_steps_is_not_dropped_whole():
    steps = [example(" ".join(LONG.split()[: 15 - cut])) for cut in range(8)]
    kept = len(steps) - len(near_duplicates(steps, 0.8))
    assert kept >= 3


def test_one_question_with_two_answers_is_a_conflict():
    rows = [example("Is it on?", "yes"), example("Is it  on?", "no"), example("Is it off?", "no")]
    assert conflicts(rows) == [[0, 1]]


def test_an_instruction_that_rows_share_does_not_make_them_alike():
    instruction = "Read what the customer says and name the queue that it belongs to, in one word."
    rows = [example(f"{instruction}\n\n{row.prompt}", row.answer) for row in distinct(20)]
    assert list(near_pairs(questions_of(rows), 0.8)) == []
    assert near_duplicates(rows, 0.8) == []


def test_rows_that_are_nothing_but_a_shared_line_are_compared_by_it():
    rows = [example("Hello")] * 12
    assert questions_of(rows) == ["hello"] * 12
