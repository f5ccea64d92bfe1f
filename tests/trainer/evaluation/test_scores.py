"""Scores are those of the libraries that people know, to the last digit."""

import pytest
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

WANTED = ["the meter is read on monday", "please call us at nine", "we are sorry for the delay"]
SAID = ["the meter is read at monday noon", "Please call us at nine.", "no"]
ANSWERS = [Answer(text, True, len(text.split())) for text in SAID]
LABELS = ("billing", "outage", "moving")


def test_bleu_is_sacrebleus_over_the_whole_corpus():
    scores = overlap_scores(ANSWERS, WANTED)

    assert scores["bleu"].value == BLEU().corpus_score(SAID, [WANTED]).score > 0
    assert bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


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
