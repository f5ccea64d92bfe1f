"""Splits that hold nothing of each other, from any order of the rows; and the check of that."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.settings import Splitting
from loragate.trainer.data.splits import SplitName, find_leaks, refuse_leaks, split
from support.training.examples import distinct, example

WORDS = [
    "account",
    "bill",
    "cable",
    "dial",
    "engineer",
    "fee",
    "gas",
    "house",
    "invoice",
    "letter",
    "meter",
    "number",
]


def _sentence(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) + str(draw.randint(0, 99)) for _ in range(12))


def _planted(seed: int) -> tuple[list[Example], list[tuple[str, str]]]:
    """Rows, and pairs of questions of which the second is the first with a small change."""
    draw = random.Random(seed)
    rows = [example(_sentence(draw), str(number)) for number in range(60)]
    pairs: list[tuple[str, str]] = []
    for row in draw.sample(rows, 15):
        changed = f"{row.prompt} {draw.choice(('thx', 'pls', 'ok'))}"
        pairs.append((row.prompt, changed))
        rows.append(example(changed, f"other {row.answer}"))
    draw.shuffle(rows)
    return rows, pairs


def _place_of(splits: dict[SplitName, tuple[Example, ...]]) -> dict[str, SplitName]:
    return {row.prompt: name for name, rows in splits.items() for row in rows}


@given(st.integers(0, 10_000), st.integers(0, 5))
@settings(deadline=None, max_examples=15)
def test_planted_near_duplicates_never_cross_splits(data_seed: int, seed: int):
    rows, pairs = _planted(data_seed)
    splits = split(rows, Splitting(seed=seed))
    place = _place_of(splits)
    assert [pair for pair in pairs if place[pair[0]] != place[pair[1]]] == []
    refuse_leaks(splits, 0.8)
    assert sum(len(part) for part in splits.values()) == len(rows)


def test_a_random_split_of_the_same_rows_leaks_and_is_refused():
    rows, _ = _planted(1)
    leaking: dict[SplitName, tuple[Example, ...]] = {
        "train": tuple(rows[:60]),
        "validation": tuple(rows[60:68]),
        "test": tuple(rows[68:]),
    }
    assert len(list(find_leaks(leaking, 0.8))) > 2
    with pytest.raises(DataError, match="the splits leak \\(near-equal questions\\)"):
        refuse_leaks(leaking, 0.8)


def test_a_leaking_splitter_is_caught_by_the_second_check():
    one, other = example("Where is my bill for the month of March?"), example("b")
    for why, twin in (
        ("the same question", example("where is my bill, for the month of march", "No.")),
        ("near-equal questions", example("Where is my bill for the month of Marc?")),
    ):
        leaks = find_leaks({"train": (one,), "validation": (other,), "test": (twin,)}, 0.8)
        assert why in {leak.why for leak in leaks}
    split_group: dict[SplitName, tuple[Example, ...]] = {
        "train": (example("a", group="g"),),
        "validation": (other,),
        "test": (example("c", group="g"),),
    }
    with pytest.raises(DataError, match="the same group"):
        refuse_leaks(split_group, 0.8)


def test_groups_stay_together():
    rows = [
        example(row.prompt, row.answer, group=f"g{number // 4}")
        for number, row in enumerate(distinct(80))
    ]
    splits = split(rows, Splitting())
    groups = [{row.group for row in part} for part in splits.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    refuse_leaks(splits, 0.8)


def test_near_rows_join_their_groups_into_one_cluster():
    one, other = "the lamp in the hall is broken again", "the lamp in the hall is broken agai"
    joined = [example(one, group="a"), example(other, group="b"), example("zzz", group="b")]
    place = _place_of(split([*joined, *distinct(30)], Splitting()))
    assert place[one] == place[other] == place["zzz"]


def test_the_order_of_the_rows_plays_no_part():
    rows, _ = _planted(3)
    shuffled = random.Random(9).sample(rows, len(rows))
    assert split(rows, Splitting()) == split(shuffled, Splitting())


def test_another_seed_makes_another_split_of_the_same_rows():
    rows = distinct(50)
    first, second = split(rows, Splitting(seed=1)), split(rows, Splitting(seed=2))
    assert first["test"] != second["test"]
    assert {len(part) for part in first.values()} == {len(part) for part in second.values()}


def test_shares_are_kept_as_well_as_clusters_let_them():
    splits = split(distinct(200), Splitting(validation=0.05, test=0.2))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 150,
        "validation": 10,
        "test": 40,
    }


def test_every_label_reaches_every_split_in_its_share():
    rows = [
        example(row.prompt, "x", label="rare" if number < 20 else "often")
        for number, row in enumerate(distinct(200))
    ]
    splits = split(rows, Splitting())
    rare = {name: sum(row.label == "rare" for row in part) for name, part in splits.items()}
    assert rare == {"train": 16, "validation": 2, "test": 2}


def test_labels_of_one_row_each_are_spread_over_the_splits():
    rows = [example(row.prompt, "x", label=row.answer) for row in distinct(40)]
    assert {name: len(part) for name, part in split(rows, Splitting()).items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }


def test_rows_that_are_all_one_cluster_cannot_be_split():
    rows = [example(row.prompt, group="everything") for row in distinct(20)]
    with pytest.raises(DataError, match="20 rows make 1 clusters"):
        split(rows, Splitting())


@pytest.mark.parametrize(
    ("validation", "test", "similarity"), [(0, 0.1, 0.8), (0.5, 0.5, 0.8), (0.1, 0.1, 0.2)]
)
def test_shares_and_similarity_that_make_no_sense_are_refused(
    validation: float, test: float, similarity: float
):
    with pytest.raises(DataError):
        Splitting(validation, test, 0, similarity)
