"""Rows that say the same: near pairs by MinHash, and which of alike rows is kept."""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from loragate.trainer.data.example import Example, row_digest
from loragate.trainer.data.likeness import jaccard, normalised, pieces, questions_of
from loragate.trainer.data.settings import Track, untracked

_HASHES = 128
_MISSED_AT_MOST = 1e-6  # the probability that a pair just as similar as asked for is not found
_SEED = 1
_SHORT_ANSWER = 3  # words; in an answer this short a single letter may be what counts


@dataclass(frozen=True, slots=True)
class Alike:
    """Row `dropped` says what row `kept` says."""

    kept: int
    dropped: int


def near_pairs(
    texts: Sequence[str], similarity: float, track: Track = untracked
) -> Iterator[tuple[int, int]]:
    """Index pairs, smaller first, of texts with at least this similarity.

    MinHash proposes, the exact index decides: no pair is wrong, and hardly one is missed.
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
        asked = tuple(f"{turn.role} {normalised(turn.content)}" for turn in example.messages[:-1])
        # The answer's case and punctuation are part of what is learnt.
        said = (*asked, example.answer.strip())
        if (kept := first.setdefault(said, number)) != number:
            found.append(Alike(kept, number))
    return found


def near_duplicates(
    examples: Sequence[Example], similarity: float, track: Track = untracked
) -> list[Alike]:
    """Rows whose question and answer are both near another row's, which is kept.

    A row is compared with kept rows only, so a chain of small steps does not empty a set.
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
        asked[normalised(example.prompt) or example.prompt].append(number)
    return [
        rows for rows in asked.values() if len({_plain_answer(examples[row]) for row in rows}) > 1
    ]


def preference(examples: Sequence[Example]) -> list[int]:
    """Which of alike rows is rather kept: the longer one; the same in any order of the rows."""
    return sorted(
        range(len(examples)),
        key=lambda row: (-len(examples[row].prompt), row_digest(examples[row])),
    )


def same_answer(one: Example, other: Example) -> bool:
    """Whether two answers differ in case and punctuation at most."""
    return _plain_answer(one) == _plain_answer(other)


def _plain_answer(example: Example) -> str:
    return normalised(example.answer) or example.answer


def _near_answer(one: Example, other: Example, similarity: float) -> bool:
    if one.label != other.label:
        return False
    first, second = _plain_answer(one), _plain_answer(other)
    return first == second or (
        min(len(first.split()), len(second.split())) > _SHORT_ANSWER
        and jaccard(pieces(first), pieces(second)) >= similarity
    )


def _bands(similarity: float) -> tuple[int, int]:
    """Bands and rows of each: the fewest proposals that still miss hardly a pair."""
    return next(
        (_HASHES // rows, rows)
        for rows in range(_HASHES // 2, 0, -1)  # datasketch wants two bands at least
        if rows == 1 or (1 - similarity**rows) ** (_HASHES // rows) <= _MISSED_AT_MOST
    )
