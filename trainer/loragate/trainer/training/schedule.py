"""The number of steps and the rows of each, which the seed decides before the first step.

The order of the whole run is one list, so a run that is resumed skips the part that is done. Rows
of similar length share a batch; the order of the batches is random.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from loragate.trainer.settings import TrainingSettings, resolved
from loragate.trainer.training.encoding import EncodedRow

# So many batches' rows are sorted by length together: enough to leave little padding, and few
# enough that a row meets others every epoch.
_BATCHES_SORTED_TOGETHER = 16


class FixedOrder(Sampler[int]):
    """Yields the rows' indices in the given order."""

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
    """The share of padding in all tokens of these batches, from 0 to 1."""
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


@dataclass(frozen=True, slots=True)
class Schedule:
    """`order` has the indices of `rows_per_step` rows for each step. `tokens` and `supervised` are
    sums at the end of each step, `steps` + 1 of them: step 0 is before training.
    """

    steps: int
    rows_per_step: int
    batch_size: int
    rows: int
    order: Sequence[int]
    tokens: Sequence[int]
    supervised: Sequence[int]

    def epochs(self, step: int) -> float:
        """How many epochs `step` steps are."""
        return step * self.rows_per_step / self.rows


def steps_of(settings: TrainingSettings, rows: int, processes: int) -> int:
    """The number of optimizer steps, unless the run is stopped early."""
    if settings.max_steps:
        return settings.max_steps
    return max(1, math.ceil(settings.epochs * rows / _rows_per_step(settings, processes)))


def make_schedule(
    rows: Sequence[EncodedRow], settings: TrainingSettings, *, seed: int, processes: int
) -> Schedule:
    """The same for the same lengths, settings and seed."""
    steps = steps_of(settings, len(rows), processes)
    per_step = _rows_per_step(settings, processes)
    order = row_order(
        [len(row.ids) for row in rows],
        batch_size=resolved(settings.batch_size),
        count=steps * per_step,
        seed=seed,
        group_by_length=settings.group_by_length,
    )
    return Schedule(
        steps=steps,
        rows_per_step=per_step,
        batch_size=resolved(settings.batch_size),
        rows=len(rows),
        order=order,
        tokens=_sums([len(rows[row].ids) for row in order], per_step),
        supervised=_sums([rows[row].supervised for row in order], per_step),
    )


def _rows_per_step(settings: TrainingSettings, processes: int) -> int:
    return resolved(settings.batch_size) * settings.gradient_accumulation * processes


def _sums(counts: Sequence[int], per_step: int) -> list[int]:
    sums = [0, *itertools.accumulate(counts)]
    return sums[::per_step]
