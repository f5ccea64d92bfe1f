"""How long a run is and what it will have seen when: known before its first step."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from loragate.trainer.settings.training import TrainingSettings
from loragate.trainer.training.order import row_order
from loragate.trainer.training.rows import Row


@dataclass(frozen=True, slots=True)
class Plan:
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
        return step * self.rows_per_step / self.rows


def steps_of(settings: TrainingSettings, rows: int, processes: int) -> int:
    """How many steps the run takes, if nothing stops it."""
    if settings.max_steps:
        return settings.max_steps
    return max(1, math.ceil(settings.epochs * rows / _rows_per_step(settings, processes)))


def make_plan(
    rows: Sequence[Row], settings: TrainingSettings, *, seed: int, processes: int
) -> Plan:
    steps = steps_of(settings, len(rows), processes)
    per_step = _rows_per_step(settings, processes)
    order = row_order(
        [len(row.ids) for row in rows],
        batch_size=settings.batch_size,
        count=steps * per_step,
        seed=seed,
        group_by_length=settings.group_by_length,
    )
    return Plan(
        steps=steps,
        rows_per_step=per_step,
        batch_size=settings.batch_size,
        rows=len(rows),
        order=order,
        tokens=_sums([len(rows[row].ids) for row in order], per_step),
        supervised=_sums([rows[row].supervised for row in order], per_step),
    )


def _rows_per_step(settings: TrainingSettings, processes: int) -> int:
    return settings.batch_size * settings.gradient_accumulation * processes


def _sums(counts: Sequence[int], per_step: int) -> list[int]:
    sums = [0, *itertools.accumulate(counts)]
    return sums[::per_step]
