"""Requirements decide, and say why in words."""

import pytest

from loragate.trainer.evaluation.requirements import (
    InvalidRequirement,
    Requirement,
    check_requirements,
)
from loragate.trainer.evaluation.statistics import ConfidenceInterval
from loragate.trainer.settings import EvaluationSettings

MEASURED = {
    "accuracy": ConfidenceInterval(0.85, 0.80, 0.90),
    "loss": ConfidenceInterval(0.5, 0.4, 0.6),
}
DIFFERENCES = {
    "base": {
        "accuracy": ConfidenceInterval(0.4, 0.3, 0.5),
        "loss": ConfidenceInterval(-1.0, -1.1, -0.9),
    }
}


def results_of(*sentences: str):
    return check_requirements(
        [Requirement.parse(each) for each in sentences], MEASURED, DIFFERENCES
    )


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [
        ("accuracy >= 0.85", True),
        ("accuracy >= 0.86", False),
        ("accuracy - base >= 0.30", True),
        ("accuracy-base>=0.41", False),
        ("loss - base <= -0.5", True),
        ("loss <= 0.4", False),
        ("loss - champion <= 0", True),
        ("f1 >= 0.1", False),
    ],
)
def test_requirement_decides(sentence: str, holds: bool):
    assert results_of(sentence).holds is holds


def test_one_broken_requirement_is_enough_to_refuse_and_is_named():
    results = results_of("accuracy >= 0.5", "loss <= 0.1")

    assert not results.holds
    assert results.sentence == (
        "The adapter is not to be published: 1 of 2 requirements does not hold (loss <= 0.1)."
    )


def test_result_says_value_interval_and_bound_in_words():
    [result] = results_of("accuracy - base >= 0.30").results

    assert result.sentence == (
        "Accuracy against the base is +40.0 points (+30.0 points to +50.0 points) and must be at "
        "least +30.0 points."
    )


def test_result_says_when_the_interval_reaches_across_the_bound():
    [result] = results_of("accuracy >= 0.83").results

    assert result.holds
    assert result.sentence.endswith("more test rows would tell.")


def test_metric_that_was_not_measured_does_not_hold_and_says_what_it_needs():
    [result] = results_of("f1 >= 0.1").results

    assert "was not measured" in result.sentence


@pytest.mark.parametrize(
    "sentence", ["accuracy > 0.5", "acuracy >= 0.5", "accuracy - v2 >= 0", "accuracy >= high", ""]
)
def test_sentence_that_cannot_be_understood_is_refused(sentence: str):
    with pytest.raises(InvalidRequirement, match="require"):
        Requirement.parse(sentence)


def test_default_requirements_can_be_read():
    for sentence in EvaluationSettings().require:
        assert str(Requirement.parse(sentence)) == sentence


def test_requirement_on_rows_that_there_are_not_does_not_hold_and_says_how_to_get_them():
    results = results_of("accuracy on far - base >= 0.1")

    assert not results.holds
    assert "no rows called 'far'" in results.results[0].sentence
    assert results.results[0].requirement == "accuracy on far - base >= 0.1"
