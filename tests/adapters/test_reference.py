import pytest

from loragate.adapters.format.reference import Reference, ScoredPrompt, Tolerance, mean_difference

PROMPTS = (
    ScoredPrompt((1, 2, 3), (-1.0, -4.0), (-3.0, -3.0)),
    ScoredPrompt((4, 5), (-2.0,), (-8.0,)),
)


def test_effect_is_the_mean_over_all_tokens():
    assert Reference(PROMPTS).effect == pytest.approx((2 + 1 + 6) / 3)


def test_stronger_adapter_is_allowed_more():
    reference = Reference(PROMPTS, tolerance=Tolerance(nats=0.1, share=0.05))

    assert reference.allowed == pytest.approx(0.1 + 0.05 * 3)


def test_scores_of_all_prompts_stand_in_their_order():
    assert Reference(PROMPTS).adapter == [-1, -4, -2]
    assert Reference(PROMPTS).base == [-3, -3, -8]


def test_lists_of_different_lengths_are_not_compared():
    with pytest.raises(ValueError, match="longer than argument 1"):
        mean_difference([-1.0], [-1.0, -2.0])


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), -1.7e308, 0.1])
def test_scores_that_are_no_log_probabilities_are_refused(score: float):
    with pytest.raises(ValueError, match="no log-probability"):
        ScoredPrompt((1, 2, 3), (-1.0, score), (-3.0, -3.0))


def test_reference_that_does_not_tell_the_adapter_from_the_base_is_refused():
    with pytest.raises(ValueError, match="scores of the adapter and of the base are the same"):
        Reference((ScoredPrompt((1, 2, 3), (-1.0, -4.0), (-1.0, -4.0)),))
