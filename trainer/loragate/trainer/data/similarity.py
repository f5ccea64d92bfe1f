"""The similarity of rows, and which rows repeat or contradict others.

The similarity of two texts is the Jaccard index of their sets of five-character pieces, without
case and punctuation. Lines that many rows share word for word (an instruction, a system prompt) do
not tell rows apart and are left out, unless nothing else remains.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from loragate.trainer.data.example import Example, row_digest
from loragate.trainer.data.settings import Track, untracked

PIECE = 5  # characters
_NOT_WORDS = re.compile(r"[\W_]+")
# A line is shared by many rows from this share of all on, and from this count.
_SHARED_FROM = 0.05
_SHARED_FROM_ROWS = 10
_HASHES = 128
_MISSED_AT_MOST = 1e-6  # the probability that a pair just as similar as asked for is not found
_SEED = 1
_SHORT_ANSWER = 3  # words; in an answer this short a single letter may be what counts


def comparable(text: str) -> str:
    """The text's words in lower case, with single spaces and no punctuation."""
    return _NOT_WORDS.sub(" ", text.casefold()).strip()


def questions_of(examples: Sequence[Example]) -> list[str]:
    """Each row's turns before the answer, comparable, without lines that many rows share."""
    lines = [_lines(example.prompt) for example in examples]
    rows_with = Counter(line for row in lines for line in set(row))
    many = max(_SHARED_FROM_ROWS, _SHARED_FROM * len(examples))
    return [" ".join(_own(row, rows_with, many)) for row in lines]


def pieces(text: str) -> frozenset[str]:
    """The set of five-character pieces of a text; a shorter text is one piece."""
    return frozenset(text[at : at + PIECE] for at in range(max(1, len(text) - PIECE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of common elements, from 0 to 1. One of the sets must not be empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _lines(text: str) -> list[str]:
    # A row without a single letter or digit ("?!") is compared as it is.
    return [line for raw in text.splitlines() if (line := comparable(raw))] or [text]


def _own(row: Iterable[str], rows_with: Counter[str], many: float) -> list[str]:
    row = list(row)
    return [line for line in row if rows_with[line] < many] or row


@dataclass(frozen=True, slots=True)
class Alike:
    """The index of a row to drop, and that of the row which it repeats."""

    kept: int
    dropped: int


def near_pairs(
    texts: Sequence[str], similarity: float, track: Track = untracked
) -> Iterator[tuple[int, int]]:
    """Yields index pairs, the smaller first, of texts with at least this similarity.

    MinHash finds candidates and the exact Jaccard index decides: no pair is wrong, and at most one
    in a million is missed.
    """
    sets = [pieces(text) for text in texts]
    bands = _bands(similarity)
    index = MinHashLSH(num_perm=_HASHES, params=bands)
    sketches = MinHash.generator(
        ([piece.encode() for piece in found] for found in sets),
        num_perm=_HASHES,
        seed=_SEED,
        hashfunc=zlib.crc32,
    )
    for number, sketch in enumerate(
        track(sketches, description="Finding near duplicates", total=len(sets))
    ):
        for key in index.query(sketch):
            other = int(str(key))
            if jaccard(sets[number], sets[other]) >= similarity:
                yield other, number
        index.insert(number, sketch)


def exact_duplicates(examples: Sequence[Example]) -> list[Alike]:
    """Rows with the same conversation but for case, punctuation and spaces."""
    first: dict[tuple[str, ...], int] = {}
    found: list[Alike] = []
    for number in preference(examples):
        example = examples[number]
        asked = tuple(f"{turn.role} {comparable(turn.text)}" for turn in example.messages[:-1])
        # The answer's case and punctuation are part of what is learnt.
        said = (*asked, example.answer.strip())
        if (kept := first.setdefault(said, number)) != number:
            found.append(Alike(kept, number))
    return found


def near_duplicates(
    examples: Sequence[Example], similarity: float, track: Track = untracked
) -> list[Alike]:
    """Rows whose question and answer are both near those of another row, which is kept.

    A row is compared with kept rows only, so that of a chain of similar rows more than one stays.
    """
    near: dict[int, list[int]] = defaultdict(list)
    for one, other in near_pairs(questions_of(examples), similarity, track):
        near[one].append(other)
        near[other].append(one)
    kept_by: dict[int, int] = {}
    for number in preference(examples):
        if number in kept_by:
            continue
        for other in near[number]:
            if other not in kept_by and _near_answer(examples[number], examples[other], similarity):
                kept_by[other] = number
    return [Alike(kept, dropped) for dropped, kept in sorted(kept_by.items())]


def conflicts(examples: Sequence[Example]) -> list[list[int]]:
    """Groups of rows that ask the same and are answered differently."""
    asked: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        asked[comparable(example.prompt) or example.prompt].append(number)
    return [
        rows for rows in asked.values() if len({_plain_answer(examples[row]) for row in rows}) > 1
    ]


def preference(examples: Sequence[Example]) -> list[int]:
    """All rows' indices in the order in which to keep them: the longest prompt first, and never by
    the order of the rows.
    """
    return sorted(
        range(len(examples)),
        key=lambda row: (-len(examples[row].prompt), row_digest(examples[row])),
    )


def same_answer(one: Example, other: Example) -> bool:
    """Whether two answers differ in case and punctuation at most."""
    return _plain_answer(one) == _plain_answer(other)


def _plain_answer(example: Example) -> str:
    return comparable(example.answer) or example.answer


def _near_answer(one: Example, other: Example, similarity: float) -> bool:
    if one.label != other.label:
        return False
    first, second = _plain_answer(one), _plain_answer(other)
    return first == second or (
        min(len(first.split()), len(second.split())) > _SHORT_ANSWER
        and jaccard(pieces(first), pieces(second)) >= similarity
    )


def _bands(similarity: float) -> tuple[int, int]:
    """The number of bands, and of hashes in each, that give the fewest candidates and miss a pair
    with a probability of `_MISSED_AT_MOST`.
    """
    return next(
        (_HASHES // rows, rows)
        for rows in range(_HASHES // 2, 0, -1)  # datasketch wants two bands at least
        if rows == 1 or (1 - similarity**rows) ** (_HASHES // rows) <= _MISSED_AT_MOST
    )
