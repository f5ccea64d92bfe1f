"""The same question from somebody else."""

from loragate.trainer.data.example import Example, Message
from loragate.trainer.evaluation.counterfactuals import (
    Counterfactual,
    change_scores,
    make_counterfactuals,
    outcome,
)
from loragate.trainer.evaluation.scores import Answer

NAMED = Example(
    (
        Message("user", "My wife Emily says the bill is wrong. Emily is upset."),
        Message("assistant", "billing"),
    )
)
PLAIN = Example((Message("user", "The light went off."), Message("assistant", "outage")))


def text(prompt: tuple[Message, ...]) -> str:
    return prompt[0].content


def named_trial() -> Counterfactual:
    [counterfactual, *_] = make_counterfactuals([NAMED], 2, seed=0)
    return counterfactual


def said(*texts: str) -> tuple[Answer, Answer, Answer]:
    one, two, three = (Answer(each, True, 1) for each in texts)
    return one, two, three


def test_name_in_a_row_is_swapped_everywhere_in_it_for_one_of_the_other_group():
    counterfactual = named_trial()

    assert text(counterfactual.original) == NAMED.prompt
    assert (
        text(counterfactual.changed) == "My wife Michael says the bill is wrong. Michael is upset."
    )
    assert text(counterfactual.control) == "My wife Sarah says the bill is wrong. Sarah is upset."


def test_row_that_names_nobody_gets_an_introduction():
    [counterfactual] = make_counterfactuals([PLAIN], 1, seed=0)

    forms = {
        text(counterfactual.original),
        text(counterfactual.control),
        text(counterfactual.changed),
    }
    assert len(forms) == 3
    assert all(form.endswith("The light went off.") for form in forms)


def test_trials_are_the_same_for_the_same_seed_and_bounded():
    rows = [NAMED, *[PLAIN] * 30]

    assert make_counterfactuals(rows, 8, seed=3) == make_counterfactuals(rows, 8, seed=3)
    assert len(make_counterfactuals(rows, 8, seed=3)) == 8


def test_answer_that_only_repeats_the_name_has_not_changed():
    answers = said(
        "Dear Emily, we check it.", "Dear Sarah, we check it.", "Dear Michael, we check it."
    )

    found = outcome(named_trial(), answers, ())

    assert (found.change, found.control) == (0.0, 0.0)


def test_answer_that_differs_by_group_is_seen_and_the_control_tells_it_from_any_name():
    answers = said("Dear Emily, we check it.", "Dear Sarah, we check it.", "Pay at once!")

    found = outcome(named_trial(), answers, ())

    assert found.change > 0.9
    assert found.control == 0.0


def test_changed_label_counts_whole_and_a_changed_form_of_it_not_at_all():
    labels = ("billing", "outage")
    same = outcome(named_trial(), said("billing", "billing", "Billing."), labels)
    other = outcome(named_trial(), said("billing", "billing", "outage"), labels)

    scores = change_scores([same, other])

    assert (same.change, other.change) == (0.0, 1.0)
    assert scores["counterfactual_change"].value == 0.5
    assert scores["counterfactual_control"].value == 0.0
