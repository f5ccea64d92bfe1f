"""Which rows a version was trained on, kept as short digests of what they ask.

A later version's test may have rows that an earlier one was trained on, where the data were split
anew. So each version keeps these digests in its folder, and an evaluation leaves such rows out.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.format.files import TRAINED_ROWS
from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.similarity import own_core

_LENGTH = 12  # hex digits; among a million rows one in 280 million is taken for another


def seen_key(example: Example) -> str:
    """A digest of what the row asks, greetings, system prompt and punctuation aside: the same in
    any data.
    """
    return hashlib.sha256(own_core(example).encode()).hexdigest()[:_LENGTH]


@dataclass(frozen=True, slots=True)
class SeenRows:
    """The digests of the rows that something was trained on."""

    keys: frozenset[str] = frozenset()

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "SeenRows":
        return cls(frozenset(map(seen_key, examples)))

    @classmethod
    def read(cls, folder: Path) -> "SeenRows | None":
        """Those of the version whose files are in `folder`; None where they are not known, as for
        an adapter that was trained elsewhere. Raises DataError.
        """
        path = folder / TRAINED_ROWS
        try:
            return cls(frozenset(path.read_text("ascii").split()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read ({error}); publish the version again, or remove the file"
            ) from error

    def write(self, folder: Path) -> None:
        """Raises DataError."""
        path = folder / TRAINED_ROWS
        try:
            path.write_text("\n".join(sorted(self.keys)) + "\n", "ascii")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error

    def has(self, example: Example) -> bool:
        return seen_key(example) in self.keys

    def __or__(self, other: "SeenRows") -> "SeenRows":
        return SeenRows(self.keys | other.keys)
