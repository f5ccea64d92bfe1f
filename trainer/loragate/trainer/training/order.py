"""In which order rows are trained: decided once, before the first step, by the seed alone.

The whole run's order is one list, so a run that goes on from a checkpoint only has to skip what
was done. Rows of like length share a batch; which batch comes when stays random.
"""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

# So many batches' rows are sorted by length together: enough to leave little padding, and few
# enough that a row meets others every epoch.
_BATCHES_SORTED_TOGETHER = 16


class FixedOrder(Sampler[int]):
    """Rows' indices in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def row_order(
    lengths: Sequence[int], *, batch_size: int, count: int, seed: int, group_by_length: bool
) -> list[int]:
    """The first `count` rows of epoch after epoch, each epoch every row once.

    `batch_size` is what one device takes at once; it decides which rows lie side by side.
    """
    chance = random.Random(seed)
    order: list[int] = []
    while len(order) < count:
        order += chance.sample(range(len(lengths)), len(lengths))
    del order[count:]
    if not group_by_length:
        return order
    span = batch_size * _BATCHES_SORTED_TOGETHER
    return [
        row
        for start in range(0, count, span)
        for row in _grouped(order[start : start + span], lengths, batch_size, chance)
    ]


def padding_share(order: Sequence[int], lengths: Sequence[int], batch_size: int) -> float:
    """How much of the tokens of these batches is padding, from 0 to 1."""
    used = full = 0
    for start in range(0, len(order), batch_size):
        batch = [lengths[row] for row in order[start : start + batch_size]]
        used += sum(batch)
        full += max(batch) * len(batch)
    return 1 - used / full if full else 0.0


def _grouped(
    rows: Sequence[int], lengths: Sequence[int], batch_size: int, chance: random.Random
) -> list[int]:
    """The same rows, those of like length in one batch; a short batch stays last."""
    by_length = sorted(rows, key=lambda row: -lengths[row])
    batches = [by_length[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    short = [batches.pop()] if len(batches[-1]) < batch_size else []
    chance.shuffle(batches)
    return [row for batch in [*batches, *short] for row in batch]
