"""Splits rows into train, validation and test, checks for leaks, and keeps the splits in a folder.

Rows of which one asks what the other asks, greetings aside, and rows of one group form a cluster,
which is never divided. A hash of the cluster and the seed assigns it, with fixed limits: the order
of the rows plays no part, and a row that is added moves no others but where it joins clusters.

Splitting finds similar rows by their rarest pieces. `find_leaks` looks for the nearest rows by all
pieces, and so finds a pair that the first search missed.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from loragate.trainer.data.pieces import nearest
from loragate.trainer.data.seen import seen_key
from loragate.trainer.data.settings import Splitting, Track, untracked
from loragate.trainer.data.similarity import comparable, cores_of, links, questions_of

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SHEET = "data.json"
_SHOWN = 120  # characters of a question in the error
_ROUNDS = 5  # of joining what a check for leaks found; one is nearly always enough
_SMALL = 20  # rows; a cluster up to this size may be in any split
_FEWEST_CLUSTERS = 5  # of a label, for it to be in each split
FAR = 0.5  # likeness; a test row that is less like any train row is far from them


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

    def nearest_in_train(self) -> list[float]:
        """For each test row its likeness with the train row that is nearest to it, from 0 to 1:
        the share of pieces that they have in common, greetings and common sentences aside.
        """
        train, test = self.splits["train"], self.splits["test"]
        cores = cores_of([*train, *test])
        return [alike for alike, _ in nearest(cores[len(train) :], cores[: len(train)])]

    def far_from_train(self) -> list[bool]:
        """For each test row whether every train row is far from it (less like than `FAR`)."""
        return [alike < FAR for alike in self.nearest_in_train()]

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
    examples: Sequence[Example],
    splitting: Splitting,
    track: Track = untracked,
    *,
    known: Mapping[str, SplitName] | None = None,
) -> dict[SplitName, tuple[Example, ...]]:
    """Assigns every row to a split, and finds no like of it in another. Raises DataError where a
    split would be empty.

    `known` says where earlier rows were, by their `seen_key`: a cluster with one of them stays
    there, and where clusters of different splits have met, all of it is trained.
    """
    # Sorted first, so that clusters and files are the same for any order of the rows.
    examples = sorted(examples, key=row_digest)
    near = _joined(examples, splitting.similarity, track)
    splits = _split_clusters(examples, near, splitting, known or {})
    for _ in range(_ROUNDS):
        places = {id(example): row for row, example in enumerate(examples)}
        leaks = list(find_leaks(splits, splitting.similarity, track))
        if not leaks:
            break
        for leak in leaks:  # what the first search missed
            near.join(places[id(leak.one[1])], places[id(leak.other[1])])
        splits = _split_clusters(examples, near, splitting, known or {})
    else:
        refuse_leaks(splits, splitting.similarity, track)
    return splits


def split_around(
    examples: Sequence[Example],
    given: Mapping[SplitName, Sequence[Example]],
    splitting: Splitting,
    track: Track = untracked,
) -> dict[SplitName, tuple[Example, ...]]:
    """Assigns rows to the splits that are not `given`. A row that is like one of those is left out,
    and so is a given validation row that is like a test row. Raises DataError as `split` does.
    """
    test = tuple(given.get("test", ()))
    validation = tuple(
        without_alike(given.get("validation", ()), test, splitting.similarity)
        if test
        else given.get("validation", ())
    )
    rows = without_alike(examples, (*validation, *test), splitting.similarity)
    if validation and test:
        splits: dict[SplitName, tuple[Example, ...]] = {
            "train": tuple(sorted(rows, key=row_digest)),
            "validation": validation,
            "test": test,
        }
        if not rows:
            raise DataError(
                "nothing is left to train: every row is like one of validation or test; add others"
            )
        return splits
    drawn = split(rows, splitting, track)
    # What was drawn for a split that is given is trained.
    name: SplitName = "test" if test else "validation"
    return {
        "train": (*drawn["train"], *drawn[name]),
        "validation": validation or drawn["validation"],
        "test": test or drawn["test"],
    }


def _split_clusters(
    examples: Sequence[Example],
    near: "_Joined",
    splitting: Splitting,
    known: Mapping[str, SplitName],
) -> dict[SplitName, tuple[Example, ...]]:
    """Raises DataError where a split would be empty."""
    clusters, loose = _divided(examples, near, splitting)
    assigned = _assign(examples, clusters, splitting, known)
    left_out = _of_tested_groups(examples, assigned, loose)
    splits: dict[SplitName, tuple[Example, ...]] = {
        name: tuple(examples[row] for row in sorted(rows) if row not in left_out)
        for name, rows in assigned.items()
    }
    if empty := [name for name, rows in splits.items() if not rows]:
        raise DataError(
            f"nothing is left for {empty[0]}: {len(examples)} rows make {len(clusters)} "
            "clusters of alike rows or groups, and a cluster is never divided; add rows of "
            "other kinds, or use smaller groups"
        )
    return splits


def _divided(
    examples: Sequence[Example], near: "_Joined", splitting: Splitting
) -> tuple[list[list[int]], set[int]]:
    """The clusters, and the rows of those that are divided at their groups.

    Where alike rows and groups form one chain that is too large for a split, it is divided into
    its clusters of alike rows, and the groups that are torn lose rows afterwards.
    """
    whole = near.copy()
    for rows in _by_group(examples).values():
        for row in rows[1:]:
            whole.join(rows[0], row)
    clusters: list[list[int]] = []
    loose: set[int] = set()
    for cluster in whole.sets():
        parts: dict[int, list[int]] = defaultdict(list)
        if len(cluster) > _largest(examples, splitting):
            for row in cluster:
                parts[near.root(row)].append(row)
        # One group alone is never divided, however large it is.
        if len(parts) > 1 and len({examples[row].group for row in cluster}) > 1:
            clusters += parts.values()
            loose.update(cluster)
        else:
            clusters.append(cluster)
    return clusters, loose


def _largest(examples: Sequence[Example], splitting: Splitting) -> float:
    """The most rows of a cluster that may be validated or tested."""
    return max(_SMALL, min(splitting.validation, splitting.test) * len(examples))


def _of_tested_groups(
    examples: Sequence[Example], assigned: Mapping[SplitName, list[int]], loose: set[int]
) -> set[int]:
    """The rows whose group is in the test too, or in validation where the test has none of it."""
    place: dict[int, SplitName] = {
        row: name for name, rows in assigned.items() for row in rows if row in loose
    }
    groups: dict[str, set[SplitName]] = defaultdict(set)
    for row, name in place.items():
        group = examples[row].group
        if group is not None:
            groups[group].add(name)
    return {
        row
        for row, name in place.items()
        if (group := examples[row].group) is not None
        and name != max(groups[group], key=SPLITS.index)
    }


def _joined(examples: Sequence[Example], similarity: float, track: Track) -> "_Joined":
    """Rows of which one asks what the other asks, joined."""
    joined = _Joined(range(len(examples)))
    # As they were written too, so that nothing that looks alike to a reader is torn apart.
    for texts in (cores_of(examples), questions_of(examples)):
        for one, other in links(texts, similarity, track, contained=True):
            joined.join(one, other)
    return joined


def _by_group(examples: Sequence[Example]) -> Mapping[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        if example.group is not None:
            groups[example.group].append(row)
    return groups


def _assign(
    examples: Sequence[Example],
    clusters: list[list[int]],
    splitting: Splitting,
    known: Mapping[str, SplitName],
) -> dict[SplitName, list[int]]:
    """Assigns each cluster by a number from 0 to 1 that its content and the seed draw, with fixed
    limits, so that more rows move none of the others.

    A split that lacks a label that has clusters enough gets the one that was drawn nearest to it,
    and a cluster larger than the share of a split is trained.
    """
    drawn = [_draw(examples, cluster, splitting.seed) for cluster in clusters]
    largest = _largest(examples, splitting)
    places: list[SplitName] = []
    for cluster, draw in zip(clusters, drawn, strict=True):
        before = {known[key] for row in cluster if (key := seen_key(examples[row])) in known}
        if before:
            # What was trained once must never be tested.
            places.append(next(name for name in SPLITS if name in before))
        elif len(cluster) > largest:
            places.append("train")
        else:
            places.append(_place(draw, splitting))
    fixed = {
        number
        for number, cluster in enumerate(clusters)
        if any(seen_key(examples[row]) in known for row in cluster)
    }
    free = [n for n in range(len(clusters)) if n not in fixed and len(clusters[n]) <= largest]
    for numbers in _by_label(examples, clusters).values():
        _spread(places, [n for n in numbers if n in free], drawn)
    _spread(places, free, drawn, fewest=3)
    sizes = [len(cluster) for cluster in clusters]
    # The test before validation: what validation takes from train goes no further.
    _top_up(places, free, drawn, sizes, ("validation", "test"), splitting.test * len(examples) / 2)
    _top_up(
        places,
        free,
        drawn,
        sizes,
        ("train", "validation"),
        splitting.validation * len(examples) / 2,
    )
    assigned: dict[SplitName, list[int]] = {"train": [], "validation": [], "test": []}
    for cluster, place in zip(clusters, places, strict=True):
        assigned[place] += cluster
    return assigned


def _place(draw: float, splitting: Splitting) -> SplitName:
    if draw >= 1 - splitting.test:
        return "test"
    return "validation" if draw >= 1 - splitting.test - splitting.validation else "train"


def _spread(
    places: list[SplitName],
    numbers: Sequence[int],
    drawn: Sequence[float],
    fewest: int = _FEWEST_CLUSTERS,
) -> None:
    """Gives the splits that have none of these clusters one, where there are enough: test that of
    the highest draw, then validation, and train that of the lowest.
    """
    if len(numbers) < fewest:
        return
    ordered = sorted(numbers, key=lambda number: drawn[number], reverse=True)
    wanted: tuple[tuple[SplitName, Sequence[int]], ...] = (
        ("test", ordered), ("validation", ordered), ("train", ordered[::-1]),
    )  # fmt: skip
    for name, candidates in wanted:
        if any(places[number] == name for number in numbers):
            continue
        # Not the only one that another split has.
        counts = Counter(places[number] for number in numbers)
        taken = next((n for n in candidates if counts[places[n]] > 1), None)
        if taken is not None:
            places[taken] = name


def _top_up(
    places: list[SplitName],
    numbers: Sequence[int],
    drawn: Sequence[float],
    sizes: Sequence[int],
    way: tuple[SplitName, SplitName],
    least: float,
) -> None:
    """Moves clusters, those of the highest draw first, to a split that has too few rows by chance.
    The test takes from validation only, so that no row that was trained comes into it.
    """
    source, goal = way
    rows = sum(size for size, place in zip(sizes, places, strict=True) if place == goal)
    left = [number for number in numbers if places[number] == source]
    for number in sorted(left, key=lambda number: drawn[number], reverse=True)[:-1]:
        if rows >= least:
            return
        places[number] = goal
        rows += sizes[number]


def _by_label(examples: Sequence[Example], clusters: list[list[int]]) -> Mapping[str, list[int]]:
    """The clusters of each label, which is that of a cluster's first row."""
    labels: dict[str, list[int]] = defaultdict(list)
    for number, cluster in enumerate(clusters):
        label = examples[cluster[0]].label
        if label is not None:
            labels[label].append(number)
    return labels


def _draw(examples: Sequence[Example], cluster: Iterable[int], seed: int) -> float:
    """A number from 0 to 1, by the least digest in the cluster: of a cluster that grows, it mostly
    stays as it is.
    """
    digests = (_anchor(examples[row], seed) for row in cluster)
    said = hashlib.sha256(f"{seed}:{min(digests)}".encode()).digest()
    return int.from_bytes(said[:8], "big") / 2**64


def _anchor(example: Example, seed: int) -> str:
    said = f"group {example.group}" if example.group is not None else seen_key(example)
    return hashlib.sha256(f"cluster {seed}:{said}".encode()).hexdigest()


class _Joined:
    """Disjoint sets of row numbers."""

    def __init__(self, parents: Iterable[int]) -> None:
        self._parents = list(parents)

    def copy(self) -> "_Joined":
        return _Joined(self._parents)

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        self._parents[max(one, other)] = min(one, other)

    def sets(self) -> list[list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for row in range(len(self._parents)):
            found[self.root(row)].append(row)
        return list(found.values())

    def root(self, row: int) -> int:
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


def without_alike(
    rows: Sequence[Example], others: Sequence[Example], similarity: float
) -> list[Example]:
    """The rows that ask nothing that one of the others asks, and are of none of their groups."""
    cores = cores_of([*rows, *others])
    found = nearest(cores[: len(rows)], cores[len(rows) :])
    groups = {other.group for other in others} - {None}
    return [
        row
        for row, (alike, _) in zip(rows, found, strict=True)
        if alike < similarity and row.group not in groups
    ]


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
    cores = cores_of([example for _, example in rows])
    numbers = {name: [n for n, row in enumerate(rows) if row[0] == name] for name in SPLITS}
    compared: tuple[tuple[SplitName, list[int]], ...] = (
        ("test", numbers["train"] + numbers["validation"]),
        ("validation", numbers["train"]),
    )
    for name, others in track(compared, description="Looking for leaks"):
        found = nearest([cores[n] for n in numbers[name]], [cores[n] for n in others])
        for number, (alike, at) in zip(numbers[name], found, strict=True):
            if alike >= similarity:
                yield Leak(rows[others[at]], rows[number], "near-equal questions")


def _short(example: Example) -> str:
    text = " ".join(example.prompt.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
