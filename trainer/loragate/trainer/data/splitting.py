"""Train, validation and test: no two alike rows, and no group, on both sides of a border.

What belongs together is a cluster: rows joined by near-equal questions or the same group. Clusters
are dealt out by a hash of what they say and the seed, so the order of the rows plays no part.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from loragate.trainer.data.duplicates import near_pairs
from loragate.trainer.data.example import DataError, Example, row_digest
from loragate.trainer.data.likeness import questions_of
from loragate.trainer.data.settings import Splitting, Track, untracked
from loragate.trainer.data.split_folder import SplitName


def split(
    examples: Sequence[Example], splitting: Splitting, track: Track = untracked
) -> dict[SplitName, tuple[Example, ...]]:
    """Deals the rows out. Raises DataError where a split would stay empty."""
    # Sorted first, so that a cluster and each file read the same whatever came first.
    examples = sorted(examples, key=row_digest)
    clusters = clusters_of(examples, splitting.similarity, track)
    dealt = _deal(examples, clusters, splitting)
    if empty := [name for name, rows in dealt.items() if not rows]:
        raise DataError(
            f"nothing is left for {empty[0]}: {len(examples)} rows make {len(clusters)} clusters "
            "of alike rows or groups, and a cluster is never torn apart; add rows of other kinds, "
            "or use smaller groups"
        )
    return {name: tuple(examples[row] for row in sorted(rows)) for name, rows in dealt.items()}


def clusters_of(
    examples: Sequence[Example], similarity: float, track: Track = untracked
) -> list[list[int]]:
    """The rows' indices, those together that must not be parted."""
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


def _deal(
    examples: Sequence[Example], clusters: list[list[int]], splitting: Splitting
) -> dict[SplitName, list[int]]:
    """Each cluster goes, label by label, to the split that lacks most rows of it, or else at all.

    A cluster's label is its first row's, so that rare labels reach every split. Large clusters go
    first, as they fit in fewest places; among equals the hash decides.
    """
    shares: dict[SplitName, float] = {
        "train": 1 - splitting.validation - splitting.test,
        "validation": splitting.validation,
        "test": splitting.test,
    }
    dealt: dict[SplitName, list[int]] = {"train": [], "validation": [], "test": []}
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
            dealt[name] += cluster
            room[name] -= len(cluster)
            room_at_all[name] -= len(cluster)
    return dealt


def _lack(
    name: SplitName,
    room: Mapping[SplitName, float],
    room_at_all: Mapping[SplitName, float],
    shares: Mapping[SplitName, float],
) -> tuple[float, float, float]:
    """Rows still wanted, as a share of the split's size; rounded, so that equals are equal."""
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
