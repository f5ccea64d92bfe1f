from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.trainer.training.schedule import padding_share, row_order

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_every_row_comes_once_in_each_epoch(
    lengths: list[int], batch_size: int, seed: int, group_by_length: bool
) -> None:
    order = row_order(
        lengths,
        batch_size=batch_size,
        count=3 * len(lengths),
        seed=seed,
        group_by_length=group_by_length,
    )
    assert Counter(order) == dict.fromkeys(range(len(lengths)), 3)


def test_the_seed_alone_decides_the_order() -> None:
    def order(seed: int) -> list[int]:
        return row_order([*range(1, 100)], batch_size=4, count=200, seed=seed, group_by_length=True)

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_rows_of_like_length_share_a_batch_so_that_little_is_padding() -> None:
    lengths = [length % 97 + 3 for length in range(0, 5000, 7)]

    def share(group_by_length: bool) -> float:
        order = row_order(
            lengths, batch_size=8, count=len(lengths), seed=0, group_by_length=group_by_length
        )
        return padding_share(order, lengths, 8)

    assert share(True) < 0.06 < 0.3 < share(False)


def test_batches_of_long_rows_come_at_any_time() -> None:
    lengths = [*range(1, 129)]
    order = row_order(lengths, batch_size=8, count=128, seed=0, group_by_length=True)
    means = [sum(lengths[row] for row in order[at : at + 8]) / 8 for at in range(0, 128, 8)]
    assert means not in (sorted(means), sorted(means, reverse=True))
