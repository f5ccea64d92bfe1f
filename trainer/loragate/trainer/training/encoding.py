"""Encodes conversations as training rows: token ids, and labels for the loss.

Both come from the renderer that the server uses. No row is truncated: one that is too long is
refused, or left out and counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from loragate.adapters.rendering.renderer import IGNORED, Renderer, RenderingError
from loragate.trainer.data.example import Example
from loragate.trainer.errors import TrainingError


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One conversation. Each id has a label: the same where it is learnt, else `IGNORED`."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> int:
        """How many tokens have a loss. The first has none, since nothing precedes it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The rows of one split, and how many conversations were too long to be among them."""

    rows: tuple[EncodedRow, ...]
    too_long: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def supervised(self) -> int:
        return sum(row.supervised for row in self.rows)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes rows of examples, under one template, system prompt and limit."""

    renderer: Renderer
    max_tokens: int
    too_long: Literal["refuse", "drop"] = "refuse"
    system_prompt: str = ""

    def encode(self, examples: Iterable[Example], split: str) -> EncodedRows:
        """Raises TrainingError naming the row, from 1, that cannot be trained."""
        rows: list[EncodedRow] = []
        too_long: list[tuple[int, int]] = []
        for number, example in enumerate(examples, start=1):
            row = self._row(example, f"row {number} of {split}")
            if len(row.ids) > self.max_tokens:
                too_long.append((number, len(row.ids)))
            else:
                rows.append(row)
        if too_long and self.too_long == "refuse":
            raise TrainingError(self._too_long(too_long, split))
        return EncodedRows(tuple(rows), len(too_long))

    def _row(self, example: Example, place: str) -> EncodedRow:
        try:
            supervised = self.renderer.supervise(
                example.with_system_prompt(self.system_prompt).turns()
            )
        except RenderingError as error:
            raise TrainingError(f"{place} cannot be rendered: {error}") from error
        row = EncodedRow(supervised.input_ids, supervised.labels)
        if self.renderer.tokenizer.eos_token_id not in row.labels:
            raise TrainingError(
                f"{place} has no end-of-turn token to learn, so the adapter would never learn to "
                "stop; the chat template has to end an assistant's turn with the tokenizer's "
                "end-of-sequence token"
            )
        return row

    def _too_long(self, too_long: Sequence[tuple[int, int]], split: str) -> str:
        longest_row, longest = max(too_long, key=lambda one: one[1])
        return (
            f"{len(too_long)} rows of {split} are longer than {self.max_tokens} tokens, the "
            f"longest (row {longest_row}) has {longest}; raise [data] max_tokens, shorten them, or "
            "leave them out with [data] too_long = 'drop'"
        )
