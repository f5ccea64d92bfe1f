"""Every rule of cleaning, and the account of what it did."""

import random

import pytest

from loragate.trainer.data.cleaning import Cleaned, clean
from loragate.trainer.data.example import DataError, Example, Message
from loragate.trainer.data.reading import BadRow, Place, Read
from loragate.trainer.data.settings import Cleaning
from support.training.examples import distinct, example, read

LONG = "the broadband at our house in mill lane has been down since yesterday at noon"
GERMAN = "Meine Rechnung ist diesmal doppelt so hoch wie sonst, bitte prüfen Sie das."


def cleaned(*examples: Example, cleaning: Cleaning | None = None) -> Cleaned:
    return clean(read(*examples), cleaning or Cleaning())


def rules(found: Cleaned) -> list[tuple[str, int]]:
    return [(drop.rule, drop.place.line) for drop in found.drops]


def test_empty_and_one_sided_rows_go_with_what_they_lack():
    user_only = Example((Message("user", "Hello?"),))
    found = cleaned(example("", ""), example(" \t", "b"), example("a?", "\u200b"), user_only)
    assert rules(found) == [("empty", 1), ("empty", 2), ("empty", 3), ("empty", 4)]
    assert [drop.reason for drop in found.drops] == [
        "the row is empty",
        "there is no question",
        "there is no answer",
        "there is no answer",
    ]


def test_rows_outside_the_limits_go():
    limits = Cleaning(min_characters=3, max_characters=50)
    found = cleaned(example("a"), example("x" * 60), example("fine"), cleaning=limits)
    assert rules(found) == [("length", 1), ("length", 2)]


def test_rows_are_normalised_and_counted():
    found = cleaned(example("Is the cafÃ© open?", " Yes. "), example("Fine as it is."))
    assert found.rows[0].example == example("Is the café open?", "Yes.")
    assert found.normalised_rows == 1


def test_only_rows_surely_in_another_language_go():
    rows = (example(GERMAN), example("Internet down"), example("Where is my bill for March?"))
    found = cleaned(*rows, cleaning=Cleaning(language="en"))
    assert rules(found) == [("language", 1)]
    assert found.drops[0].reason == "the language is de, not en"
    assert cleaned(*rows).drops == []


def test_the_language_is_told_beside_an_instruction_that_all_rows_share():
    instruction = "Say in one word which of our six queues this message belongs to."
    rows = [example(f"{instruction}\n\n{row.prompt}") for row in distinct(12)]
    found = cleaned(*rows, example(f"{instruction}\n\n{GERMAN}"), cleaning=Cleaning(language="en"))
    assert ("language", 13) in rules(found)


def test_a_language_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match="language 'xx' is unknown"):
        cleaned(example("a?"), cleaning=Cleaning(language="xx"))


def test_personal_data_are_masked_or_the_row_is_dropped_or_kept():
    row = example("Write to a.b@c.example about it", "Done.")
    masked = cleaned(row)
    assert masked.rows[0].example.prompt == "Write to [EMAIL] about it"
    assert (masked.masked, masked.masked_rows) == ({"e-mail address": 1}, 1)
    dropped = cleaned(row, cleaning=Cleaning(personal_data="drop"))
    assert rules(dropped) == [("personal_data", 1)]
    kept = cleaned(row, cleaning=Cleaning(personal_data="keep"))
    assert kept.rows[0].example == row


@pytest.mark.parametrize("personal_data", ["mask", "drop", "keep"])
def test_no_sample_or_reason_shows_personal_data(personal_data: str):
    secret = "4111 1111 1111 1111"
    long = "x " * 112  # so that the sample is cut in the middle of the number
    raw = read(
        example(f"Card {secret}", ""),
        example(f"{long}{secret}", ""),
        example(f"Pay with {secret}"),
        example(f"Pay with {secret}"),
    )
    raw.bad.append(BadRow(Place("raw.jsonl", 9), f"{secret} is no JSON"))
    cleaning = Cleaning(personal_data=personal_data)  # pyright: ignore[reportArgumentType]
    told = str([drop.to_json() for drop in clean(raw, cleaning).drops])
    assert "4111" not in told


def test_rows_that_differ_in_what_is_masked_alone_become_duplicates():
    found = cleaned(example("Mail a@b.example, please"), example("Mail c@d.example, please"))
    assert len(found.rows) == 1


def test_duplicates_name_the_row_that_stayed():
    found = cleaned(example(LONG), example("Something else."), example(f"{LONG} thx"))
    assert rules(found) == [("near_duplicate", 1)]
    assert found.drops[0].other == Place("raw.jsonl", 3)
    assert found.drops[0].reason == "as in line 3"


def test_near_duplicates_can_be_kept_and_called_near_by_another_measure():
    rows = (example(LONG), example(f"{LONG} thx"))
    assert len(cleaned(*rows, cleaning=Cleaning(near_duplicates="keep")).rows) == 2
    assert len(cleaned(*rows, cleaning=Cleaning(similarity=0.99)).rows) == 2


def test_all_rows_of_a_conflict_go_or_all_stay():
    rows = (
        example("Is it on?", "yes", label="yes"),
        example("Is it  on?", "no", label="no"),
        example("Who?", "me", label="me"),
    )
    found = cleaned(*rows)
    assert rules(found) == [("conflict", 1), ("conflict", 2)]
    assert found.drops[0].other == Place("raw.jsonl", 2)
    kept = cleaned(*rows, cleaning=Cleaning(conflicts="keep"))
    assert (len(kept.rows), kept.conflicts_kept) == (3, 2)


def test_what_stays_does_not_depend_on_the_order_of_the_rows():
    rows = [*distinct(10), example(LONG), example(f"{LONG} x"), example(LONG.upper())]
    rows += [example("Is it on?", "yes"), example("Is it on?", "no")]
    first = set(cleaned(*rows).examples)
    assert first == set(cleaned(*random.Random(1).sample(rows, len(rows))).examples)


def test_free_text_keeps_the_rows_of_a_common_question():
    answers = [row.prompt for row in distinct(24)[20:]]
    rows = [example("How do I reset it?", answer) for answer in answers]
    found = cleaned(*rows, *distinct(10))
    assert (len(found.rows), found.conflicts_kept) == (14, 4)
    dropped = cleaned(*rows, *distinct(10), cleaning=Cleaning(conflicts="drop"))
    assert len(dropped.rows) == 10


def test_rows_that_were_changed_are_recorded_with_what_and_where():
    found = cleaned(
        example("The cafÃ© is  open?", "Yes."),
        example("I am a@b.example, write to me", "We wrote to a@b.example."),
        example("And the hotline?", "It is 0800 111 999."),
    )
    mended, masked = found.changes
    assert (mended.kind, mended.place.line, mended.what) == ("mended", 1, ("mojibake", "spaces"))
    assert (mended.before, mended.after) == ("The cafÃ© is  open?", "The café is open?")
    assert (masked.kind, masked.place.line, masked.what) == ("masked", 2, ("e-mail address",))
    assert "[EMAIL]" in masked.after
    assert "a@b" not in str([change.to_json() for change in found.changes])
    assert (found.masked_answers, found.kept_in_answers) == (1, 1)
    assert found.rows[2].example.answer == "It is 0800 111 999."


def test_labels_that_differ_in_case_are_one_label():
    rows = [example(row.prompt, "Billing", label="Billing") for row in distinct(4)]
    rows.append(example("Something else?", "billing ", label="billing"))
    rows.append(example("And free text?", "It is about a bill.", label="BILLING"))
    found = cleaned(*rows)
    assert {row.label for row in found.examples} == {"Billing"}
    assert found.rows[4].example.answer == "Billing"
    assert found.rows[5].example.answer == "It is about a bill."
    assert [change.kind for change in found.changes[-2:]] == ["labelled", "labelled"]


def test_few_answers_that_come_again_are_taken_for_labels():
    rows = [example(row.prompt, ("yes", "no")[n % 2]) for n, row in enumerate(distinct(20))]
    found = cleaned(*rows)
    assert found.are_labels_found
    assert {row.label for row in found.examples} == {"yes", "no"}
    assert {row.label for row in cleaned(*distinct(20)).examples} == {None}


def test_stock_phrases_that_come_again_are_no_labels():
    phrases = ("Thank you for asking, we will look into it.", "We are sorry, this cannot be done.")
    rows = [example(row.prompt, phrases[n % 2]) for n, row in enumerate(distinct(20))]
    assert {row.label for row in cleaned(*rows).examples} == {None}


def test_every_row_read_is_kept_or_accounted_for():
    raw = read(*distinct(5), example("", ""), example("Twice, please."), example("Twice please"))
    raw = Read(raw.rows, [BadRow(Place("raw.jsonl", 20), "no JSON")])
    found = clean(raw, Cleaning())
    assert found.rows_read == 9 == len(found.rows) + len(found.drops)
    assert [*found.drops_by_rule()] == ["bad_row", "empty", "exact_duplicate"]
