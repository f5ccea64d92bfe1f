"""How alike two rows are: which text of a row is compared, and in which pieces.

The similarity of two texts is the Jaccard index of their sets of five-character pieces, after case
and punctuation are taken away. Lines that many rows share word for word (an instruction, a system
prompt) say nothing about a row and are left out where something else remains.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from loragate.trainer.data.example import Example

PIECE = 5  # characters
_NOT_WORDS = re.compile(r"[\W_]+")
# A line is shared by many rows from this share of all on, and from this count.
_SHARED_FROM = 0.05
_SHARED_FROM_ROWS = 10


def normalised(text: str) -> str:
    """Words in lower case with single spaces between, no punctuation."""
    return _NOT_WORDS.sub(" ", text.casefold()).strip()


def questions_of(examples: Sequence[Example]) -> list[str]:
    """What each row asks, normalised, without the lines that many rows share."""
    lines = [_lines(example.prompt) for example in examples]
    rows_with = Counter(line for row in lines for line in set(row))
    many = max(_SHARED_FROM_ROWS, _SHARED_FROM * len(examples))
    return [" ".join(_own(row, rows_with, many)) for row in lines]


def pieces(text: str) -> frozenset[str]:
    """The set that similarity is computed of; a shorter text is one piece."""
    return frozenset(text[at : at + PIECE] for at in range(max(1, len(text) - PIECE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _lines(text: str) -> list[str]:
    # A row without a single letter or digit ("?!") is compared as it is.
    return [line for raw in text.splitlines() if (line := normalised(raw))] or [text]


def _own(row: Iterable[str], rows_with: Counter[str], many: float) -> list[str]:
    row = list(row)
    return [line for line in row if rows_with[line] < many] or row
