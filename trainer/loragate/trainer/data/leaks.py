"""Proof that no split holds what another holds, by other means than those that split the data.

Splitting finds alike rows by MinHash; this looks at every pair that could be alike (prefix
filtering: two sets with a Jaccard index of at least t share one of each set's rarest pieces), so
what MinHash would miss is found here.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.likeness import jaccard, normalised, pieces, questions_of
from loragate.trainer.data.settings import Track, untracked
from loragate.trainer.data.split_folder import SplitName

_SHOWN = 120  # characters of a question in the error


@dataclass(frozen=True, slots=True)
class Leak:
    """Two rows of different splits that belong together, and why."""

    one: tuple[SplitName, Example]
    other: tuple[SplitName, Example]
    why: str


def refuse_leaks(
    splits: Mapping[SplitName, tuple[Example, ...]],
    similarity: float,
    track: Track = untracked,
) -> None:
    """Raises DataError, with the first pair, where a row is alike to one of another split."""
    leak = next(find_leaks(splits, similarity, track), None)
    if leak is None:
        return
    (one, first), (other, second) = leak.one, leak.other
    raise DataError(
        f"the splits leak ({leak.why}): {one} has {_short(first)!r} and {other} has "
        f"{_short(second)!r}; a test on what was trained says nothing, so split the data again "
        "with `loragate data split`"
    )


def find_leaks(
    splits: Mapping[SplitName, tuple[Example, ...]],
    similarity: float,
    track: Track = untracked,
) -> Iterator[Leak]:
    """Every pair of rows across splits with the same group, or questions equal or near."""
    rows: list[tuple[SplitName, Example]] = [
        (name, example) for name, examples in splits.items() for example in examples
    ]
    yield from _same(rows, "the same group", lambda example: example.group)
    yield from _same(rows, "the same question", lambda example: normalised(example.prompt) or None)
    yield from _near(rows, similarity, track)


def _same(
    rows: list[tuple[SplitName, Example]], why: str, key_of: Callable[[Example], str | None]
) -> Iterator[Leak]:
    first: dict[str, tuple[SplitName, Example]] = {}
    for row in rows:
        key = key_of(row[1])
        if key is not None and first.setdefault(key, row)[0] != row[0]:
            yield Leak(first[key], row, why)


def _near(rows: list[tuple[SplitName, Example]], similarity: float, track: Track) -> Iterator[Leak]:
    sets = [pieces(text) for text in questions_of([example for _, example in rows])]
    rarity = Counter(piece for found in sets for piece in found)
    seen: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(track(sets, description="Looking for leaks")):
        ordered = sorted(found, key=lambda piece: (rarity[piece], piece))
        prefix = ordered[: len(ordered) - ceil(similarity * len(ordered)) + 1]
        for other in {other for piece in prefix for other in seen[piece]}:
            if rows[other][0] != rows[number][0] and jaccard(found, sets[other]) >= similarity:
                yield Leak(rows[other], rows[number], "near-equal questions")
        for piece in prefix:
            seen[piece].append(number)


def _short(example: Example) -> str:
    text = " ".join(example.prompt.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
