import re

import pytest

from loragate.trainer.training.checkpoints import RunState, Validation
from loragate.trainer.training.export import diagnose_fit


def validations(*losses: float) -> list[Validation]:
    return [Validation(10 * number, loss) for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "fit", "words"),
    [
        ((3.0, 2.0, 1.5, 1.2, 1.0, 0.9), "underfitted", "still falling"),
        ((3.0, 1.5, 1.1, 1.01, 1.003, 1.002), "well fitted", "levelled out"),
        ((3.0, 1.5, 1.0, 1.2, 1.5, 1.9), "overfitted", "at step 20 and then rose to 1.900"),
        ((1.0, 1.1, 1.2), "unknown", "lowest .* before training"),
    ],
)
def test_the_diagnosis_says_how_the_run_went(
    losses: tuple[float, ...], fit: str, words: str
) -> None:
    diagnosis = diagnose_fit(validations(*losses), 10 * (len(losses) - 1))
    assert diagnosis.fit == fit
    assert pytest.approx(min(losses)) == diagnosis.best_validation_loss
    assert re.search(words, diagnosis.sentence)


def test_a_run_that_is_one_validation_past_its_minimum_by_a_hair_is_no_overfit() -> None:
    assert diagnose_fit(validations(3.0, 1.2, 1.01, 1.0, 1.001), 40).fit == "well fitted"


def test_of_equal_losses_the_earlier_is_the_best() -> None:
    run_state = RunState("", validations(2.0, 1.0, 1.0, 1.0))
    assert run_state.best.step == 10
    assert run_state.since_best == 2
