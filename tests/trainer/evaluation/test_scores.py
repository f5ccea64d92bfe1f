"""Scores are those of the libraries that people know, to the last digit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sklearn.metrics import accuracy_score, f1_score

from loragate.trainer.evaluation.scores import (
    Answer,
    bleu_signature,
    label_in,
    label_scores,
    overlap_scores,
    text_scores,
)
from loragate.trainer.evaluation.statistics import Bootstrap

WANTED = ["the meter is read on monday", "please call us at nine", "we are sorry for the delay"]
SAID = ["the meter is read at monday noon", "Please call us at nine.", "no"]
ANSWERS = [Answer(text, True, len(text.split())) for text in SAID]
LABELS = ("billing", "outage", "moving")


def test_bleu_is_sacrebleus_over_the_whole_corpus():
    scores = overlap_scores(ANSWERS, WANTED)

    assert scores["bleu"].value == BLEU().corpus_score(SAID, [WANTED]).score > 0
    assert bleu_signature(WANTED).startswith(
        "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    )


@pytest.mark.parametrize(("ours", "theirs"), [("rouge_1", "rouge1"), ("rouge_l", "rougeL")])
def test_rouge_is_rouge_scores_mean(ours: str, theirs: str):
    scorer = RougeScorer([theirs])
    expected = [
        scorer.score(wanted, said)[theirs].fmeasure
        for wanted, said in zip(WANTED, SAID, strict=True)
    ]

    assert overlap_scores(ANSWERS, WANTED)[ours].value == pytest.approx(100 * sum(expected) / 3)


def test_accuracy_and_f1_are_scikit_learns():
    wanted = ["billing", "billing", "outage", "moving", "outage", "moving"]
    said = ["billing", "outage", "outage", "I think it is moving", "Outage.", "billing"]
    answers = [Answer(text, True, 1) for text in said]
    read = [label_in(text, LABELS) or "none" for text in said]

    scores = label_scores(answers, wanted, LABELS)

    assert scores["accuracy"].value == pytest.approx(accuracy_score(wanted, read)) == 0.5
    assert scores["f1"].value == pytest.approx(
        f1_score(wanted, read, labels=list(LABELS), average="macro")
    )


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("billing", "billing"),
        (" **Billing**. ", "billing"),
        ('"outage"', "outage"),
        ("billing or outage", None),
        ("The label is billing", None),
        ("", None),
    ],
)
def test_label_is_read_only_where_it_is_the_whole_answer(answer: str, label: str | None):
    assert label_in(answer, LABELS) == label


def test_exact_match_forgives_case_and_marks_around_and_nothing_else():
    answers = [Answer("Please  call us at nine.", True, 5), Answer("please call at nine", True, 4)]

    scores = text_scores(answers, ["please call us at nine"] * 2)

    assert scores["exact_match"].value == 0.5


def test_answer_cut_by_the_limit_lowers_the_stop_rate():
    answers = [Answer("a", True, 1), Answer("a b", False, 2)]

    scores = text_scores(answers, ["a", "a"])

    assert scores["stop_rate"].value == 0.5
    assert scores["length"].value == 1.5


PERFECT = {
    "Chinese": "您好！包裹已发出，预计明天到达。",  # noqa: RUF001  # the language\'s own letters and marks
    "Japanese": "お荷物は明日の午後に届く予定です。",
    "Thai": "พัสดุของคุณจะมาถึงพรุ่งนี้",
    "Korean": "소포가 내일 도착할 예정입니다.",
    "Russian": "Ваша посылка уже в пути.",
    "Arabic": "طردك سيصل غدا",
    "Hindi": "आपका पार्सल कल पहुँच जाएगा।",
    "Greek": "Το δέμα σας φτάνει αύριο.",  # noqa: RUF001  # the language\'s own letters and marks
    "short": "Yes.",
    "English": "Your parcel is on its way and will arrive tomorrow.",
}


@pytest.mark.parametrize("text", PERFECT.values(), ids=PERFECT)
def test_perfect_answer_has_full_scores_in_any_script_and_length(text: str):
    scores = overlap_scores([Answer(text, True, 9)], [text])

    expected = {"bleu": 100.0, "rouge_1": 100.0, "rouge_l": 100.0}
    assert {name: scores[name].value for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("language", ["Chinese", "Japanese", "Russian", "Hindi"])
def test_half_right_answer_is_between_in_any_script(language: str):
    text = PERFECT[language]

    scores = overlap_scores([Answer(text[: len(text) // 2], True, 9)], [text])

    assert scores["bleu"].value < 95
    assert 25 < scores["rouge_1"].value < 95


@pytest.mark.parametrize(
    ("language", "tokens"), [("Chinese", "zh"), ("Japanese", "char"), ("Russian", "intl")]
)
def test_signature_says_how_the_script_was_cut_into_tokens(language: str, tokens: str):
    assert f"tok:{tokens}" in bleu_signature([PERFECT[language]])


@given(
    st.text(st.characters(max_codepoint=126, min_codepoint=32)),
    st.text(st.characters(max_codepoint=126)),
)
def test_rouge_of_ascii_text_is_rouge_scores(one: str, other: str):
    theirs = RougeScorer(["rouge1", "rougeL"]).score(other, one)

    ours = overlap_scores([Answer(one, True, 1)], [other])

    assert ours["rouge_1"].value == pytest.approx(100 * theirs["rouge1"].fmeasure)
    assert ours["rouge_l"].value == pytest.approx(100 * theirs["rougeL"].fmeasure)


def test_label_that_no_row_wants_does_not_lower_f1():
    wanted = list("aaaabbbb")

    scores = label_scores([Answer(each, True, 1) for each in wanted], wanted, ("a", "b", "absent"))

    assert scores["f1"].value == 1.0


def test_perfect_f1_leaves_doubt_and_more_of_it_for_rare_labels():
    def interval(wanted: str):
        scores = label_scores([Answer(each, True, 1) for each in wanted], list(wanted), LETTERS)
        return Bootstrap(len(wanted), 0.95, 500, seed=0).interval(scores["f1"])

    even, rare = interval("aaaaaaaaaabbbbbbbbbb"), interval("aaaaaaaaaaaaaaaaaaab")

    assert even.estimate == rare.estimate == 1.0
    assert rare.low < even.low < 0.9


LETTERS = ("a", "b", "c")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.sampled_from([*LETTERS, "?"])), min_size=1))
def test_f1_is_scikit_learns_over_the_labels_that_rows_want(pairs: list[tuple[str, str]]):
    wanted, said = [one for one, _ in pairs], [other for _, other in pairs]

    scores = label_scores([Answer(each, True, 1) for each in said], wanted, LETTERS)

    labels = sorted(set(wanted))
    assert scores["f1"].value == pytest.approx(
        f1_score(wanted, said, labels=labels, average="macro")
    )


def test_labels_of_rows_and_settings_may_differ_in_case():
    answers = [Answer(text, True, 1) for text in ("billing", "OUTAGE", "Billing")]

    scores = label_scores(answers, ["billing", "outage", "outage"], ("Billing", "Outage"))

    assert scores["accuracy"].value == pytest.approx(2 / 3)


def test_labels_that_differ_in_case_only_are_told_apart_by_their_exact_spelling():
    labels = ("Billing", "billing", "C", "C.", "!")

    read = [
        label_in(text, labels) for text in ("Billing", "billing", "BILLING", "C.", "c", "", "!")
    ]

    assert read == ["Billing", "billing", None, "C.", "C", None, "!"]
