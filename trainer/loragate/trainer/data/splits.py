"""Splits rows into train, validation and test, checks for leaks, and keeps the splits in a folder.

Rows with near-equal questions or the same group form a cluster, which is never divided. Clusters
are assigned by a hash of their content and the seed, so the order of the rows plays no part.

Splitting finds similar rows by MinHash. `find_leaks` compares every pair that could be similar, by
prefix filtering (two sets with a Jaccard index of at least t share one of each set's rarest
pieces), and so finds a pair that MinHash missed.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal, cast, get_args

from loragate.trainer.data.example import (
    DataError,
    Example,
    digest_of,
    digest_of_texts,
    read_examples,
    row_digest,
    write_examples,
)
from loragate.trainer.data.settings import Splitting, Track, untracked
from loragate.trainer.data.similarity import comparable, jaccard, near_pairs, pieces, questions_of

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SHEET = "data.json"
_SHOWN = 120  # characters of a question in the error


@dataclass(frozen=True, slots=True)
class SplitFolder:
    """A folder of splits, in memory. `sheet` is data.json: `digest` is that of the three splits,
    `splits` has the number of rows and the digest of each, and further fields their provenance.
    """

    path: Path
    splits: Mapping[SplitName, tuple[Example, ...]]
    sheet: Mapping[str, object]

    @property
    def digest(self) -> str:
        return str(self.sheet["digest"])

    @classmethod
    def read(cls, path: Path) -> "SplitFolder":
        """Reads a folder. Raises DataError where a file is missing or was changed since."""
        try:
            sheet = cast(dict[str, object], json.loads((path / SHEET).read_text("utf-8")))
        except OSError as error:
            raise DataError(
                f"{path} is no folder of splits ({SHEET}: {error.strerror}); "
                "make one with `loragate data split`"
            ) from error
        except ValueError as error:
            raise DataError(f"{path / SHEET} is no JSON: {error}; split the data again") from error
        splits: dict[SplitName, tuple[Example, ...]] = {
            name: tuple(read_examples(path / f"{name}.jsonl")) for name in SPLITS
        }
        if sheet.get("digest") != folder_digest(splits):
            raise DataError(
                f"the files in {path} are not those that {SHEET} describes; split the data again"
            )
        return cls(path, splits, sheet)


def write_split_folder(
    path: Path,
    splits: Mapping[SplitName, tuple[Example, ...]],
    about: Mapping[str, object],
) -> SplitFolder:
    """Writes the splits, and then data.json with the fields of `about`: a folder that has data.json
    is complete. Raises DataError.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / SHEET).unlink(missing_ok=True)
    for name in SPLITS:
        write_examples(path / f"{name}.jsonl", splits[name])
    sheet: dict[str, object] = {
        "format": 1,
        "digest": folder_digest(splits),
        "splits": {
            name: {"rows": len(rows), "digest": digest_of(rows)} for name, rows in splits.items()
        },
        **about,
    }
    (path / SHEET).write_text(json.dumps(sheet, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return SplitFolder(path, splits, sheet)


def folder_digest(splits: Mapping[SplitName, tuple[Example, ...]]) -> str:
    """The digest of the splits' content, whatever the order of their rows."""
    return digest_of_texts(digest_of(splits[name]) for name in SPLITS)


def split(
    examples: Sequence[Example], splitting: Splitting, track: Track = untracked
) -> dict[SplitName, tuple[Example, ...]]:
    """Assigns every row to a split. Raises DataError where a split would be empty."""
    # Sorted first, so that clusters and files are the same for any order of the rows.
    examples = sorted(examples, key=row_digest)
    clusters = clusters_of(examples, splitting.similarity, track)
    assigned = _assign(examples, clusters, splitting)
    if empty := [name for name, rows in assigned.items() if not rows]:
        raise DataError(
            f"nothing is left for {empty[0]}: {len(examples)} rows make {len(clusters)} clusters "
            "of alike rows or groups, and a cluster is never divided; add rows of other kinds, "
            "or use smaller groups"
        )
    return {name: tuple(examples[row] for row in sorted(rows)) for name, rows in assigned.items()}


def clusters_of(
    examples: Sequence[Example], similarity: float, track: Track = untracked
) -> list[list[int]]:
    """Lists of row indices; the rows of one list must stay in one split."""
    joined = _Joined(len(examples))
    for one, other in near_pairs(questions_of(examples), similarity, track):
        joined.join(one, other)
    for rows in _by_group(examples).values():
        for row in rows[1:]:
            joined.join(rows[0], row)
    return joined.sets()


def _by_group(examples: Sequence[Example]) -> Mapping[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        if example.group is not None:
            groups[example.group].append(row)
    return groups


def _assign(
    examples: Sequence[Example], clusters: list[list[int]], splitting: Splitting
) -> dict[SplitName, list[int]]:
    """Assigns each cluster to the split that lacks most rows of the cluster's label, which is that
    of its first row, or else most rows of any; so rare labels reach every split.

    Large clusters are assigned first, since they fit into the fewest splits; among equals the hash
    decides.
    """
    shares: dict[SplitName, float] = {
        "train": 1 - splitting.validation - splitting.test,
        "validation": splitting.validation,
        "test": splitting.test,
    }
    assigned: dict[SplitName, list[int]] = {"train": [], "validation": [], "test": []}
    room_at_all: dict[SplitName, float] = {
        name: share * len(examples) for name, share in shares.items()
    }
    for clusters_of_label in _by_label(examples, clusters).values():
        total = sum(len(cluster) for cluster in clusters_of_label)
        room: dict[SplitName, float] = {name: share * total for name, share in shares.items()}
        for cluster in sorted(
            clusters_of_label,
            key=lambda cluster: (-len(cluster), _draw(examples, cluster, splitting.seed)),
        ):
            name = max(shares, key=lambda name: _lack(name, room, room_at_all, shares))
            assigned[name] += cluster
            room[name] -= len(cluster)
            room_at_all[name] -= len(cluster)
    return assigned


def _lack(
    name: SplitName,
    room: Mapping[SplitName, float],
    room_at_all: Mapping[SplitName, float],
    shares: Mapping[SplitName, float],
) -> tuple[float, float, float]:
    """The rows that the split lacks, as a share of its size. Rounded, since floats that should be
    equal must compare as equal.
    """
    share = shares[name]
    return round(room[name] / share, 6), round(room_at_all[name] / share, 6), share


def _by_label(
    examples: Sequence[Example], clusters: list[list[int]]
) -> Mapping[str | None, list[list[int]]]:
    labels: dict[str | None, list[list[int]]] = defaultdict(list)
    for cluster in clusters:
        labels[examples[cluster[0]].label].append(cluster)
    return labels


def _draw(examples: Sequence[Example], cluster: Iterable[int], seed: int) -> str:
    said = "".join(sorted(row_digest(examples[row]) for row in cluster))
    return hashlib.sha256(f"{seed}:{said}".encode()).hexdigest()


class _Joined:
    """Disjoint sets of row numbers."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        self._parents[max(one, other)] = min(one, other)

    def sets(self) -> list[list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for row in range(len(self._parents)):
            found[self._root(row)].append(row)
        return list(found.values())

    def _root(self, row: int) -> int:
        while (parent := self._parents[row]) != row:
            self._parents[row] = self._parents[parent]
            row = parent
        return row


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
    """Raises DataError, with the first pair, where a row is similar to one of another split."""
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
    """Yields pairs of rows of different splits with the same group, or equal or near questions."""
    rows: list[tuple[SplitName, Example]] = [
        (name, example) for name, examples in splits.items() for example in examples
    ]
    yield from _same(rows, "the same group", lambda example: example.group)
    yield from _same(rows, "the same question", lambda example: comparable(example.prompt) or None)
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
