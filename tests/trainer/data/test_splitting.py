"""Splits that hold nothing of each other, from any order of the rows; and the check of that."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.seen import SeenRows, seen_key
from loragate.trainer.data.settings import Splitting
from loragate.trainer.data.splits import (
    SplitName,
    find_leaks,
    refuse_leaks,
    split,
    without_alike,
    write_split_folder,
)
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


def test_shares_are_those_asked_for_but_for_chance():
    splits = split(distinct(1000), Splitting(validation=0.05, test=0.2))
    assert len(splits["test"]) == pytest.approx(200, abs=40)
    assert len(splits["validation"]) == pytest.approx(50, abs=21)


@pytest.mark.parametrize("seed", range(5))
def test_every_label_reaches_every_split(seed: int):
    rows = [
        example(row.prompt, "x", label="rare" if number < 20 else "often")
        for number, row in enumerate(distinct(200))
    ]
    splits = split(rows, Splitting(seed=seed))
    assert all({row.label for row in part} == {"rare", "often"} for part in splits.values())


@pytest.mark.parametrize("seed", range(5))
def test_few_rows_reach_every_split(seed: int):
    splits = split(distinct(10), Splitting(seed=seed))
    assert all(splits.values())
    assert len(splits["train"]) >= 4


@given(st.integers(0, 10_000), st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_added_rows_move_no_other(data_seed: int, seed: int):
    draw = random.Random(data_seed)
    rows = [example(_sentence(draw), label=draw.choice("abc")) for _ in range(240)]
    before = _place_of(split(rows[:180], Splitting(seed=seed)))
    after = _place_of(split(rows, Splitting(seed=seed)))
    assert {name for row, name in before.items() if after[row] != name} <= {"train", "validation"}
    assert [row for row, name in before.items() if (name, after[row]) == ("train", "test")] == []


def test_rows_that_join_clusters_of_known_places_are_resolved_toward_training():
    old = [example(f"{row.prompt} of {row.answer}") for row in distinct(60)]
    before = split(old, Splitting())
    known: dict[str, SplitName] = {
        seen_key(row): name for name, part in before.items() for row in part
    }
    trained, tested = before["train"][0], before["test"][0]
    bridge = example(f"{trained.prompt} {tested.prompt}")
    after = _place_of(split([*old, bridge, *distinct(90)[60:]], Splitting(), known=known))
    assert after[trained.prompt] == after[bridge.prompt] == after[tested.prompt] == "train"
    assert all(after[row.prompt] == "test" for row in before["test"] if row != tested)


GREETINGS = ["Hello, ", "Good morning. ", "Hi there, I hope you can help: ", "Dear team,\n", "hey "]
CLOSINGS = [
    "",
    " Thanks!",
    " Please advise.",
    "\n\nKind regards,\nAnna",
    " Could you look into it?",
]


def test_a_question_in_other_dress_is_in_the_same_split():
    rows = [
        example(f"{draw.choice(GREETINGS)}{row.prompt}.{draw.choice(CLOSINGS)}", f"{number}")
        for draw in [random.Random(4)]
        for number, row in enumerate(distinct(30))
        for _ in range(4)
    ]
    splits = split(rows, Splitting())
    cores = [{row.answer for row in part} for part in splits.values()]
    assert not cores[0] & cores[1] | cores[0] & cores[2] | cores[1] & cores[2]


def test_a_question_within_a_longer_one_is_in_the_same_split():
    short = [example(f"where do i find {row.prompt}") for row in distinct(40)]
    long = [
        example(f"my brother told me to ask you about it and so i do {row.prompt} it is urgent {n}")
        for n, row in enumerate(short)
    ]
    place = _place_of(split([*short, *long], Splitting()))
    assert all(place[one.prompt] == place[two.prompt] for one, two in zip(short, long, strict=True))


def test_a_chain_of_groups_and_alike_rows_does_not_eat_the_test():
    draw = random.Random(2)
    kinds = [row.prompt for row in distinct(60)]
    rows = [
        example(
            f"{kind} {draw.randint(100, 999)}", str(n), group=f"customer {draw.randint(0, 250)}"
        )
        for n, kind in enumerate(kinds * 6)
    ]
    splits = split(rows, Splitting())
    assert len(splits["test"]) >= 18
    assert sum(map(len, splits.values())) > 0.7 * len(rows)
    assert list(find_leaks(splits, 0.8)) == []


def test_test_rows_far_from_all_train_rows_are_told(tmp_path: Path):
    train = [example(f"the lamp in the hall of {row.prompt} is broken") for row in distinct(5)]
    near = example(f"is the lamp in the hall of {distinct(1)[0].prompt} broken")
    far = example("can i pay by card at the counter")
    folder = write_split_folder(
        tmp_path, {"train": tuple(train), "validation": (), "test": (near, far)}, {}
    )
    assert folder.far_from_train() == [False, True]
    alike = folder.nearest_in_train()
    assert alike[0] > 0.6 > 0.2 > alike[1]


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


def test_rows_to_replay_that_are_tested_are_left_out():
    old = [example(f"Hello, {row.prompt}. Thanks!", group=row.answer) for row in distinct(6)]
    tested = [distinct(1)[0], example("something else entirely", group="a2")]
    assert without_alike(old, tested, 0.8) == [old[1], *old[3:]]


def test_seen_rows_are_known_again_in_other_dress_and_under_a_system_prompt(tmp_path: Path):
    asked = "my bill of march is twice as high as usual"
    SeenRows.of([example(f"Hello, {asked}. Thanks!")]).write(tmp_path)
    seen = SeenRows.read(tmp_path)
    assert seen is not None
    assert seen.has(example(asked, "Another answer."))
    assert seen.has(example(asked).with_system_prompt("You are kind."))
    assert not seen.has(example(f"{asked} and wrong"))


def test_of_an_adapter_from_elsewhere_it_is_not_known_what_it_has_seen(tmp_path: Path):
    assert SeenRows.read(tmp_path) is None
