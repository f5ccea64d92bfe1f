"""Agreement as Krippendorff defines it, with its doubt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.trainer.evaluation.agreement import Agreement, agreement

# Krippendorff's own example: four observers, eleven units that two or more have rated.
BOOK = [
    (1, 1, 1), (2, 2, 3, 2), (3, 3, 3, 3), (3, 3, 3, 3), (2, 2, 2, 2), (1, 2, 3, 4), (4, 4, 4, 4),
    (1, 1, 2, 1), (2, 2, 2, 2), (5, 5, 5), (1, 1), (3,),
]  # fmt: skip


def alpha(*units: tuple[int, ...]) -> Agreement:
    return agreement(units, 0.95, 500, seed=0)


def test_alpha_is_that_of_krippendorffs_ordinal_example():
    found = alpha(*BOOK)

    assert found.alpha == pytest.approx(0.815, abs=5e-4)
    assert found.units == 11
    assert found.alpha is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.alpha < found.high <= 1


def test_neighbours_on_the_scale_disagree_less_than_its_ends():
    near = alpha((1, 2), (2, 1), (4, 5), (5, 4)).alpha
    far = alpha((1, 5), (5, 1), (2, 4), (4, 2)).alpha

    assert near is not None
    assert far is not None
    assert near > 0.5 > 0 > far


@pytest.mark.parametrize(
    ("units", "why"),
    [
        ([(4, 4), (4, 4)], "all ratings are the same"),
        ([(1,), (5,)], "nothing was rated twice"),
        ([], "nothing was rated twice"),
    ],
)
def test_alpha_is_undefined_where_there_is_nothing_to_agree_on(
    units: list[tuple[int, ...]], why: str
):
    found = alpha(*units)

    assert found.alpha is None
    assert found.sentence == f"undefined: {why}"


def test_full_agreement_on_few_answers_leaves_doubt():
    found = alpha((1, 1), (3, 3), (5, 5), (2, 2))

    assert (found.alpha, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert found.low < 0.6


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=8))
def test_alpha_never_exceeds_one_and_ignores_the_order_of_raters(units: list[list[int]]):
    one = agreement(units, 0.95, 100, seed=0).alpha
    other = agreement([unit[::-1] for unit in units], 0.95, 100, seed=0).alpha

    assert one == other
    assert one is None or one <= 1
