"""Sheets on which people label rows, or answer them, and what comes back: what they agree on.

A folder has a sheet for each person and `annotation.json`, which says what stands behind the
sheets' items, so that they can be read wherever the rows' files are by then. With labels everybody
gets all rows; without, each row goes to one person, who writes the answer.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.agreement import Agreement, agreement
from loragate.trainer.evaluation.annotation_rows import Item
from loragate.trainer.evaluation.scores import folded, label_in
from loragate.trainer.evaluation.spreadsheet import (
    item_id,
    read_table,
    require_unfilled,
    table_bytes,
)
from loragate.trainer.run.folder import write_whole

FILE: Final = "annotation.json"
DISAGREEMENTS: Final = "disagreements.csv"
_FIXED: Final = ("item", "prompt", "choices")
_RATER: Final = re.compile(r"\w[\w.-]{0,59}")
_WHOLE: Final = re.compile(r"(\d+)[.,]0+")
_CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 2000
_ADJUDICATED: Final = "adjudication"


class Annotation(msgspec.Struct, frozen=True):
    """What annotation.json holds. Without `labels` people write answers."""

    labels: tuple[str, ...]
    raters: tuple[str, ...]
    items: dict[str, Item]

    @classmethod
    def read(cls, folder: Path) -> Annotation:
        """Raises EvaluationError."""
        path = folder / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise EvaluationError(
                f"{folder} holds no sheets ({FILE} is missing); write some with "
                f"`loragate data annotate FILE --out {folder}`"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise EvaluationError(f"{path} cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row that people agree on, or that was decided. `by` are those who said it."""

    item: Item
    label: str
    by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disputed:
    """A row that people label differently: what each says."""

    key: str
    item: Item
    said: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Labels:
    """What came back. `agreement` is None where people write answers, or one alone labels."""

    annotation: Annotation
    counts: Mapping[str, int]
    agreed: tuple[Labelled, ...]
    disputed: tuple[Disputed, ...]
    agreement: Agreement | None

    @property
    def open(self) -> int:
        """Rows that nobody has labelled, or one alone of several."""
        return len(self.annotation.items) - len(self.agreed) - len(self.disputed)

    @property
    def changed(self) -> tuple[Labelled, ...]:
        """Rows whose file has another label."""
        return tuple(
            each
            for each in self.agreed
            if each.item.label is not None and folded(each.item.label) != folded(each.label)
        )

    def sentences(self) -> Iterator[str]:
        """What to know of it."""
        said = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        yield f"Of {len(self.annotation.items)} rows there are labels by {said}."
        if self.agreement is not None:
            yield (
                f"Agreement (Krippendorff's alpha, nominal): {self.agreement.sentence}, over "
                f"{self.agreement.units} rows that two or more have labelled."
            )
            if self.agreement.alpha is not None and self.agreement.alpha < 0.67:
                yield (
                    "Below 0.67 the labels say little: agree on what each of them means, in "
                    "writing, and label again."
                )
        if self.disputed:
            yield (
                f"{len(self.disputed)} rows are labelled differently and are not written; decide "
                f"them in the column 'label' of {DISAGREEMENTS}, and read again."
            )
        known = [each for each in self.agreed if each.item.label is not None]
        if known:
            yield (
                f"Of {len(known)} rows that had a label, people say another one in "
                f"{len(self.changed)}."
            )
        if self.open:
            by = "two people" if self.agreement is not None else "anybody"
            yield f"{self.open} rows are not labelled by {by} yet."

    def rows(self) -> Iterator[dict[str, object]]:
        """The agreed rows, as `data check` reads them, each with its origin."""
        for each in self.agreed:
            yield _row(each, is_label=bool(self.annotation.labels))


def labels_for(items: Iterable[Item], given: Sequence[str]) -> tuple[str, ...]:
    """The labels that people may choose from: those given, or those that the rows have; none where
    there are none. Raises EvaluationError for some that cannot be told apart.
    """
    first: dict[str, str] = {}
    for label in given or sorted({each.label for each in items if each.label}):
        if not folded(label):
            raise EvaluationError("--labels: a label is empty; leave it out")
        other = first.setdefault(folded(label), label)
        if given and other != label:
            raise EvaluationError(
                f"--labels: {other!r} and {label!r} cannot be told apart; leave one of them out"
            )
    if len(first) == 1:
        raise EvaluationError(
            f"there is only one label ({next(iter(first.values()))!r}), so nothing to choose; name "
            "them with --labels a,b,c"
        )
    return tuple(first.values())


def write_sheets(
    items: Sequence[Item],
    folder: Path,
    labels: tuple[str, ...],
    raters: Sequence[str],
    rows: int,
    seed: int = 0,
) -> Annotation:
    """Writes a sheet for each person, of at most `rows` rows: those without a label (or, without
    labels, without an answer) first, drawn at random. Raises EvaluationError, before
    anything is written, for a name that is no file's, and where a sheet is filled in already.
    """
    raters = tuple(dict.fromkeys(raters))
    for name in raters:
        if not _RATER.fullmatch(name) or f"{name}.csv" == DISAGREEMENTS:
            raise EvaluationError(
                f"--raters: {name!r} cannot be a file's name; use letters, digits, - and _"
            )
        require_unfilled(folder / f"{name}.csv", "item", _FIXED, "read it back with --read")
    require_unfilled(folder / DISAGREEMENTS, "item", (*_FIXED, *raters), "read it with --read")
    chosen = _chosen(items, labels, rows, seed)
    annotation = Annotation(labels, raters, chosen)
    order = list(chosen)
    random.Random(seed).shuffle(order)
    choices = "; ".join(labels) or "write the answer"
    for number, name in enumerate(raters):
        own = order if labels else order[number :: len(raters)]
        table = [[key, chosen[key].prompt, choices, "", ""] for key in own]
        columns = (*_FIXED, "label" if labels else "answer", "comment")
        write_whole(folder / f"{name}.csv", table_bytes(columns, table))
    encoded = msgspec.json.format(msgspec.json.encode(annotation), indent=2)
    write_whole(folder / FILE, encoded + b"\n")
    return annotation


def read_labels(folder: Path) -> Labels:
    """What people filled in: every CSV file of the folder is one person's. Rows that they label
    differently go by what `disagreements.csv` says, where that is filled in. Raises EvaluationError
    with the file and the row.
    """
    annotation = Annotation.read(folder)
    sheets = sorted(path for path in folder.glob("*.csv") if path.name != DISAGREEMENTS)
    said: dict[str, dict[str, str]] = {key: {} for key in annotation.items}
    counts: Counter[str] = Counter()
    for path in sheets:
        for key, label in _filled(path, annotation):
            said[key][path.stem] = label
            counts[path.stem] += 1
    if not counts:
        raise EvaluationError(
            f"the sheets in {folder} are empty; fill in the column "
            f"{'label' if annotation.labels else 'answer'!r}, then read them"
        )
    decisions = folder / DISAGREEMENTS
    decided = dict(_filled(decisions, annotation)) if decisions.is_file() else {}
    is_compared = bool(annotation.labels) and len(counts) > 1
    needed = 2 if is_compared else 1
    agreed, disputed = list[Labelled](), list[Disputed]()
    for key, by_rater in said.items():
        item, labels = annotation.items[key], set(by_rater.values())
        if len(labels) == 1 and len(by_rater) >= needed:
            agreed.append(Labelled(item, labels.pop(), tuple(by_rater)))
        elif len(labels) > 1 and key in decided:
            agreed.append(Labelled(item, decided[key], (_ADJUDICATED,)))
        elif len(labels) > 1:
            disputed.append(Disputed(key, item, by_rater))
    units = [list(each.values()) for each in said.values()]
    return Labels(
        annotation,
        dict(counts),
        tuple(agreed),
        tuple(disputed),
        agreement(units, _CONFIDENCE, _RESAMPLES, 0, scale="nominal") if is_compared else None,
    )


def write_disagreements(labels: Labels, folder: Path) -> Path:
    """Writes the rows that people label differently, with what each says, and a column to decide;
    what was decided in it before is in `labels`. Raises RunFolderError.
    """
    raters = sorted({name for each in labels.disputed for name in each.said})
    choices = "; ".join(labels.annotation.labels) or "write the answer"
    column = "label" if labels.annotation.labels else "answer"
    decided = [each for each in labels.agreed if each.by == (_ADJUDICATED,)]
    keys = {id(item): key for key, item in labels.annotation.items.items()}
    table = [
        [each.key, each.item.prompt, choices, *(each.said.get(name, "") for name in raters), ""]
        for each in labels.disputed
    ]
    # A decision that was made stays, so that reading again makes the same of it.
    table += [
        [keys[id(each.item)], each.item.prompt, choices, *("" for _ in raters), each.label]
        for each in decided
    ]
    path = folder / DISAGREEMENTS
    write_whole(path, table_bytes((*_FIXED, *raters, column), table))
    return path


def write_rows(labels: Labels, path: Path) -> int:
    """Writes the agreed rows as JSON lines and returns their number. Raises RunFolderError."""
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in labels.rows()]
    write_whole(path, "".join(rows).encode())
    return len(rows)


def _row(labelled: Labelled, *, is_label: bool) -> dict[str, object]:
    item = labelled.item
    is_kept = item.label is not None and folded(item.label) == folded(labelled.label)
    # An answer that is more than the label stays where its label does.
    answer = item.answer if is_label and is_kept and item.answer else labelled.label
    known: dict[str, object] = {"tools": item.tools, "group": item.group, "id": item.id}
    return {
        "messages": [*item.messages, {"role": "assistant", "content": answer}],
        **({"label": labelled.label} if is_label else {}),
        **{name: value for name, value in known.items() if value},
        "origin": f"{item.place}, labelled by {', '.join(labelled.by)}",
    }


def _filled(path: Path, annotation: Annotation) -> Iterator[tuple[str, str]]:
    column = "label" if annotation.labels else "answer"
    seen: set[str] = set()
    for row in read_table(path, "item", has_texts=not annotation.labels):
        key = row.cells.get("item", "").strip()
        if key not in annotation.items:
            raise EvaluationError(
                f"{path}, row {row.number}: {key!r} is no row of these sheets; use a sheet of this "
                "folder"
            )
        said = row.cells.get(column, "").strip()
        if not said:
            continue
        if key in seen:
            raise EvaluationError(f"{path}, row {row.number}: {key!r} is labelled twice")
        seen.add(key)
        yield key, _label(said, annotation.labels, f"{path}, row {row.number}")


def _label(said: str, labels: tuple[str, ...], place: str) -> str:
    if not labels:
        return said
    whole = _WHOLE.fullmatch(said)  # a spreadsheet may have made 1.0 or 1,0 of 1
    for each in (said, whole[1] if whole else said):
        if (found := label_in(each, labels)) is not None:
            return found
    raise EvaluationError(f"{place}: {said!r} is none of the labels ({', '.join(labels)})")


def _chosen(
    items: Sequence[Item], labels: tuple[str, ...], rows: int, seed: int
) -> dict[str, Item]:
    by_key: dict[str, Item] = {}
    for each in items:
        by_key.setdefault(item_id(each.prompt), each)  # the same question is asked once
    order = list(by_key)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda key: bool(by_key[key].label if labels else by_key[key].answer))
    return {key: by_key[key] for key in order[:rows]}
