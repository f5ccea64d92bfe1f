"""What is said of data that are few, lopsided, uniform, unfair or too long."""

import pytest

from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.demographics import Lexicon, associations_of, mentions_of
from loragate.trainer.data.example import Example
from loragate.trainer.data.quality import (
    Finding,
    Quality,
    assess_quality,
    effective_number,
    topics_of,
)
from loragate.trainer.data.settings import QualityLimits
from support.training.examples import distinct, example

LEXICON = Lexicon.load()


def found_on(quality: Quality, subject: str) -> list[Finding]:
    return [finding for finding in quality.findings if finding.subject == subject]


@pytest.mark.parametrize(
    ("rows", "level"), [(9, "refuse"), (10, "warn"), (99, "warn"), (100, "note"), (500, "good")]
)
def test_volume_is_refused_warned_about_or_noted(rows: int, level: str):
    limits = QualityLimits(warn_below=100, note_below=500)
    quality = assess_quality(distinct(rows), limits)
    assert [finding.level for finding in found_on(quality, "Volume")] == [level]


def test_the_limits_of_volume_are_ten_a_thousand_and_five_thousand():
    limits = QualityLimits()
    found = (limits.refuse_below, limits.warn_below, limits.note_below)
    assert found == (10, 1_000, 5_000)


def _labelled(**counts: int) -> list[Example]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    rows = distinct(len(labels))
    return [example(row.prompt, "x", label=label) for row, label in zip(rows, labels, strict=True)]


def test_lopsided_and_rare_labels_are_warned_about():
    quality = assess_quality(_labelled(often=210, rare=6), QualityLimits())
    sentences = " ".join(finding.sentence for finding in found_on(quality, "Labels"))
    assert "'often' has 210 rows and 'rare' 6" in sentences
    assert "Fewer than 20 rows have 'rare'" in sentences
    assert quality.labels == (("often", 210), ("rare", 6))


def test_one_label_is_nothing_to_tell_apart():
    (finding,) = found_on(assess_quality(_labelled(only=30), QualityLimits()), "Labels")
    assert finding.level == "warn"


def test_even_labels_are_good():
    (finding,) = found_on(assess_quality(_labelled(a=40, b=30), QualityLimits()), "Labels")
    assert finding.level == "good"


def test_questions_from_one_pattern_are_warned_about():
    rows = [example(f"Please tell me about item{n}x{n} and its price") for n in range(60)]
    quality = assess_quality(rows, QualityLimits())
    assert quality.openings == 1
    assert [finding.level for finding in found_on(quality, "Variety")] == ["warn"]
    assert [finding.level for finding in found_on(quality, "Lengths")] == ["note"]


def test_topics_are_named_by_their_words():
    bills = [example(f"invoice refund payment bill{n}") for n in range(40)]
    cuts = [example(f"outage power electricity cut{n}") for n in range(35)]
    moves = [example(f"keys flat removal move{n}") for n in range(30)]
    topics = topics_of([*bills, *cuts, *moves])
    words = {word for topic in topics for word in topic.words}
    assert {"invoice", "outage", "removal"} <= words
    assert sum(topic.rows for topic in topics) == 105
    assert topics == topics_of([*moves, *cuts, *bills])


def test_few_rows_have_no_topics_and_even_parts_count_whole():
    assert topics_of(distinct(20)) == []
    assert effective_number([10, 10, 10]) == pytest.approx(3)
    assert effective_number([30, 0]) == pytest.approx(1)


def _said_of(group: str, label: str, count: int) -> list[Example]:
    return [
        example(f"{row.prompt} {group}", "x", label=label) for row in distinct(count)
    ]  # fmt: skip


def test_a_planted_association_is_found_with_its_size():
    rows = [
        *_said_of("my elderly neighbour", "complaint", 15),
        *_said_of("my elderly neighbour", "billing", 1),
        *_said_of("the lamp", "complaint", 40),
        *_said_of("the lamp", "billing", 160),
    ]
    found = {(one.group, one.trait): one for one in associations_of(rows, LEXICON)}
    association = found["older people", "label complaint"]
    assert (association.rows, association.share_with) == (16, 15 / 16)
    assert association.share_without == 0.2
    assert association.low < association.odds_ratio < association.high
    assert association.low > 1
    told = " ".join(
        one.sentence for one in found_on(assess_quality(rows, QualityLimits()), "Groups of people")
    )
    assert "name older people, 94% have label complaint; of the others 20%" in told


def test_words_of_blame_beside_a_group_are_found():
    rows = [
        *(example(f"{row.prompt} the migrants are lazy and dirty") for row in distinct(12)),
        *(example(f"{row.prompt} is the lamp on") for row in distinct(60)),
    ]
    found = {(one.group, one.trait) for one in associations_of(rows, LEXICON)}
    assert ("migrants and refugees", "words of blame") in found


def test_groups_spread_evenly_make_no_finding():
    rows = [
        example(f"{row.prompt} my {('wife', 'husband')[n % 2]}", "x", label="ab"[n // 2 % 2])
        for n, row in enumerate(distinct(120))
    ]
    assert associations_of(rows, LEXICON) == []
    (finding,) = found_on(assess_quality(rows, QualityLimits()), "Groups of people")
    assert finding.level == "good"


def test_mentions_are_whole_words_in_any_case_and_not_of_the_system_prompt():
    mentions = mentions_of([example("SHE is here"), example("the ashes of shelves")], LEXICON)
    assert [(mention.group, mention.rows) for mention in mentions] == [("women", 1)]


def test_tokens_over_the_limit_are_counted_with_the_share_that_would_be_cut(renderer: Renderer):
    rows = [*distinct(10), example("word " * 300)]
    quality = assess_quality(rows, QualityLimits(max_tokens=100), renderer)
    assert quality.tokens is not None
    assert quality.tokens.rows_over == 1
    lengths = quality.tokens.per_row
    assert quality.tokens.share_cut == (max(lengths) - 100) / sum(lengths)
    (finding,) = found_on(quality, "Tokens")
    assert (finding.level, "1 rows are longer than 100" in finding.sentence) == ("warn", True)


def test_without_a_base_model_a_finding_says_that_tokens_were_not_counted():
    quality = assess_quality(distinct(10), QualityLimits())
    assert quality.tokens is None
    assert [finding.level for finding in found_on(quality, "Tokens")] == ["note"]


@pytest.mark.parametrize(
    "text",
    [
        "My account was disabled yesterday, and the login is disabled too.",
        "The page answers in 900 ms and I miss the old one.",
        "The motherboard and the mother board of my Brother printer broke.",
        "See the man page. It is a male plug and a female socket.",
        "Christian wrote from Indiana and Islamabad that the rabbit is Roma's.",
        "Translate it into Chinese, with a Japanese keyboard.",
        "The API was retired.",
    ],
)
def test_no_people_are_seen_where_only_a_word_is_alike(text: str):
    assert mentions_of([example(text)], LEXICON) == []


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("I am disabled and need a ramp.", "disabled people"),
        ("Where is the disabled parking?", "disabled people"),
        ("My brother's bill is wrong.", "men"),
        ("My mother is 80.", "women"),
        ("I'm retired and live alone.", "older people"),
        ("Two Indian customers wrote.", "Asian people"),
        ("A NON-BINARY person asked.", "non-binary and trans people"),
    ],
)
def test_people_are_seen_where_they_are_named(text: str, group: str):
    assert [mention.group for mention in mentions_of([example(text)], LEXICON)] == [group]


def test_which_kind_of_and_a_patient_are_no_praise():
    words = LEXICON.sentiment["praise"]
    assert not words.are_in("What kind of plug does the patient need? Good morning.")
    assert words.are_in("They were kind and very patient.")


def test_labels_that_no_answer_says_are_told_and_verdicts_refused():
    rows = [
        example(row.prompt, "Good answer.", label=str(n % 2)) for n, row in enumerate(distinct(20))
    ]
    (told,) = [
        f for f in assess_quality(rows, QualityLimits()).findings if "not what" in f.sentence
    ]
    assert told.level == "refuse"
    named = [example(row.prompt, "Some text.", label="billing") for row in distinct(20)]
    (told,) = [
        f for f in assess_quality(named, QualityLimits()).findings if "not what" in f.sentence
    ]
    assert told.level == "warn"
    right = [example(row.prompt, "It is Billing.", label="billing") for row in distinct(20)]
    assert not any(
        "not what" in f.sentence for f in assess_quality(right, QualityLimits()).findings
    )
