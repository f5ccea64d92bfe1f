"""What an adapter has to beat."""

from dataclasses import replace

import pytest

from loragate.trainer.data.example import Example, Message
from loragate.trainer.evaluation.comparison import System
from loragate.trainer.evaluation.contenders import (
    bm25,
    prompts_with_examples,
    prompts_with_retrieval,
    tfidf_answers,
)
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.evaluation.requirements import Requirement, check_requirements
from loragate.trainer.evaluation.statistics import ConfidenceInterval
from loragate.trainer.settings import EvaluationSettings
from support.training.evaluations import evaluation_of
from support.training.examples import example
from support.training.finished_runs import examples

TRAIN = [
    example("my bill is too high", "billing", label="billing"),
    example("the invoice has a wrong sum", "billing", label="billing"),
    example("there is no light in the house", "outage", label="outage"),
    example("the power is off since noon", "outage", label="outage"),
]
LABELS = ("Billing", "outage")
INTERVAL = ConfidenceInterval(1.0, 0.9, 1.1)


def always(_prompt: tuple[Message, ...], _tools: str) -> bool:
    return True


def test_nearest_row_is_the_one_that_shares_rare_words():
    scores = bm25([row.prompt for row in TRAIN], ["is the power off?", "a wrong invoice"])

    assert scores.argmax(axis=1).tolist() == [3, 1]
    assert (scores >= 0).all()


@pytest.mark.parametrize("texts", [["?!", "..."], ["您好", "包裹"]])
def test_search_takes_texts_without_words_and_in_any_script(texts: list[str]):
    assert bm25(texts, ["包裹"]).shape == (1, 2)


def test_bm25_is_its_formula():
    # One text of two words, one of four; "a" is in both, "b" in the first only.
    found = bm25(["a b", "a c c d"], ["b a"])[0]

    length, ordinary = 1 - 0.75 + 0.75 * 2 / 3, 1.5
    for_b = 0.6931472 * (ordinary + 1) / (1 + ordinary * length)
    for_a = 0.1823216 * (ordinary + 1) / (1 + ordinary * length)
    assert found[0] == pytest.approx(for_a + for_b, rel=1e-6)


def test_examples_are_of_all_labels_and_the_same_for_every_question():
    rows = [example("where is my light", label="outage"), example("what does it cost")]

    one, other = prompts_with_examples(rows, TRAIN, 2, always)

    assert one[:-1] == other[:-1]
    assert {turn.content for turn in one if turn.role == "assistant"} == {"billing", "outage"}
    assert one[-1].content == "where is my light"


def test_retrieved_rows_stand_before_the_question_the_nearest_last():
    [prompt] = prompts_with_retrieval([example("power is off")], TRAIN, 2, always)

    assert [turn.role for turn in prompt] == ["user", "assistant"] * 2 + ["user"]
    assert prompt[2].content == "the power is off since noon"


def test_rows_that_do_not_fit_are_left_out_farthest_first_and_the_system_prompt_stays():
    row = Example((Message("system", "Be brief."), *example("power is off").messages))

    def short(prompt: tuple[Message, ...], _tools: str) -> bool:
        return len(prompt) <= 4

    [prompt] = prompts_with_retrieval([row], TRAIN, 3, short)
    [alone] = prompts_with_retrieval([row], TRAIN, 3, lambda *_: False)

    assert [turn.role for turn in prompt] == ["system", "user", "assistant", "user"]
    assert prompt[1].content == "the power is off since noon"
    assert alone == row.messages[:-1]


def test_classifier_of_words_says_labels_as_they_are_spelt_in_the_settings():
    rows = [example("the bill and the sum are wrong"), example("no power, no light")]

    said = tfidf_answers(rows, TRAIN, LABELS)

    assert said is not None
    assert [answer.text for answer in said] == ["Billing", "outage"]


def test_classifier_needs_two_labels():
    assert tfidf_answers(TRAIN, TRAIN[:2], LABELS) is None


async def test_contenders_stand_beside_base_and_adapter_with_what_a_request_takes(base, adapter):
    def speak(model: str, question: str) -> str:
        return "outage" if model == "base" else right[question]

    right = {row.prompt: row.answer for row in examples()}
    prompted = [
        System("examples", "base, 2 examples", base.path, None, "base", "examples"),
        System("retrieval", "base, 2 rows", base.path, None, "base", "retrieval"),
    ]
    settings = EvaluationSettings(counterfactual_rows=0, resamples=100, examples=2, samples=2)

    found = await evaluation_of(
        base, adapter, examples()[:6], speak, settings, train=examples()[6:], prompted=prompted
    )

    assert [each.name for each in found.systems] == [
        "base", "examples", "retrieval", "tfidf", "new",
    ]  # fmt: skip
    by_name = {each.name: each.metrics for each in found.systems}
    assert by_name["tfidf"]["accuracy"].estimate == 1.0  # words tell these rows apart
    assert "loss" not in by_name["examples"]
    assert found.differences["retrieval"]["accuracy"].estimate == pytest.approx(2 / 3)
    page = render_report(found)
    assert "Which way?" in page
    assert "The best way without training a model (TF-IDF, logistic regression)" in page
    assert "These are 6 rows only" in page


def results_of(sentence: str, *baselines: str):
    difference = replace(INTERVAL, estimate=0.2)
    return check_requirements(
        [Requirement.parse(sentence)],
        {"loss": INTERVAL},
        {name: {"loss": difference} for name in baselines},
    )


def test_first_version_is_a_baseline_that_does_not_move():
    drifted = results_of("loss - first <= 0.05", "base", "first", "champion")
    first_is_champion = results_of("loss - first <= 0.05", "base", "champion")

    assert not drifted.holds
    assert not first_is_champion.holds
    assert results_of("loss - first <= 0.05", "base").holds  # there is no version yet


def test_contender_that_was_not_asked_does_not_hold_and_is_named():
    found = results_of("loss - tfidf <= 0", "base")

    assert not found.holds
    assert "name 'tfidf' in [evaluation] contenders" in found.results[0].sentence
