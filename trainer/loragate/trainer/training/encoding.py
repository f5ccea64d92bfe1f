"""Encodes conversations as training rows: token ids, and labels for the loss.

Both come from the renderer that the server uses. No row is truncated: one that is too long is
refused, or left out and counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loragate.adapters.rendering.renderer import IGNORED, Renderer, RenderingError, Supervised
from loragate.trainer.data.example import Example
from loragate.trainer.errors import TrainingError

_SHOWN: Final = 5  # refused rows in an error's sentence


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Tokens to learn from. Each id has a label: the same where it is learnt, else `IGNORED`."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> int:
        """How many tokens have a loss. The first has none, since nothing precedes it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows of one split. A conversation is several where its template writes earlier turns
    otherwise once later ones follow.

    `too_long` rows are not among them. `ends` are the tokens that end their learnt turns.
    `lost_reasoning` rows had reasoning for which the template has no place.
    """

    rows: tuple[EncodedRow, ...]
    too_long: int = 0
    ends: frozenset[int] = frozenset()
    lost_reasoning: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def supervised(self) -> int:
        return sum(row.supervised for row in self.rows)


def supervised(renderer: Renderer, example: Example) -> tuple[Supervised, ...]:
    """An example's rows, of one at least. Raises RenderingError."""
    return renderer.supervise(example.turns(), tools=example.tool_list(), unlearnt=example.unlearnt)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes rows of examples, under one template, system prompt and limit."""

    renderer: Renderer
    max_tokens: int
    too_long: Literal["refuse", "drop"] = "refuse"
    system_prompt: str = ""

    def encode(self, examples: Iterable[Example], split: str) -> EncodedRows:
        """Raises TrainingError naming the rows, from 1, that cannot be trained."""
        rows: list[Supervised] = []
        too_long: list[tuple[int, int]] = []
        refused: list[str] = []
        for number, example in enumerate(examples, start=1):
            try:
                found = self.rows_of(example)
            except RenderingError as error:
                refused.append(f"row {number}: {error}")
                continue
            for row in found:
                if len(row.input_ids) > self.max_tokens:
                    too_long.append((number, len(row.input_ids)))
                else:
                    rows.append(row)
        if refused:
            raise TrainingError(_refusal(refused, split))
        if too_long and self.too_long == "refuse":
            raise TrainingError(self._too_long(too_long, split))
        return EncodedRows(
            tuple(EncodedRow(row.input_ids, row.labels) for row in rows),
            len(too_long),
            frozenset().union(*(row.ends for row in rows)),
            sum(row.lost_reasoning for row in rows),
        )

    def rows_of(self, example: Example) -> tuple[Supervised, ...]:
        """Raises RenderingError."""
        return supervised(self.renderer, example.with_system_prompt(self.system_prompt))

    def _too_long(self, too_long: Sequence[tuple[int, int]], split: str) -> str:
        longest_row, longest = max(too_long, key=lambda one: one[1])
        return (
            f"{len(too_long)} rows of {split} are longer than {self.max_tokens} tokens, the "
            f"longest (row {longest_row}) has {longest}; raise [data] max_tokens, shorten them, or "
            "leave them out with [data] too_long = 'drop'"
        )


def _refusal(refused: Sequence[str], split: str) -> str:
    count = "1 row" if len(refused) == 1 else f"{len(refused)} rows"
    more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    return f"{count} of {split} cannot be learnt: {'; '.join(refused[:_SHOWN])}{more}"
