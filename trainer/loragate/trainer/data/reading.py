"""Reads files of training data to examples; what cannot be read is reported with file and line."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.files import MAX_LINE, Place, files_of, hub_name, rows_of
from loragate.trainer.data.formats import RejectedAnswer, convert
from loragate.trainer.data.settings import Reading, Track, untracked

SHOWN = 5  # bad rows in an error's sentence


@dataclass(frozen=True, slots=True)
class Row:
    """An example and where it was read."""

    place: Place
    example: Example


@dataclass(frozen=True, slots=True)
class BadRow:
    """Where a row cannot be read, and why."""

    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read. `sha256` is of its bytes."""

    path: str
    sha256: str
    rows: int


@dataclass(slots=True)
class Read:
    """The rows of all files, and those that could not be read. `ignored_fields` counts rows."""

    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    ignored_fields: Counter[str] = field(default_factory=Counter)
    rejected: list[Place] = field(default_factory=list)  # rows with a bad answer, not to be learnt


def read_rows(
    paths: Sequence[Path], reading: Reading | None = None, track: Track = untracked
) -> Read:
    """Reads every file. Raises DataError where one cannot be read, where none has a row, or where
    rows are bad and are to be refused.
    """
    reading = reading or Reading()
    read = Read()
    for path in files_of(paths):
        before = len(read.rows) + len(read.bad) + len(read.rejected)
        for place, fields in track(rows_of(path, reading), description=f"Reading {path.name}"):
            _take(read, place, fields, reading)
        rows = len(read.rows) + len(read.bad) + len(read.rejected) - before
        digest = "" if hub_name(path) else file_digest(path)
        read.sources.append(Source(str(path), digest, rows))
    if read.bad and reading.bad_rows == "refuse":
        raise DataError(_refusal(read.bad))
    if not read.rows:
        named = ", ".join(str(path) for path in paths) or "no file"
        raise DataError(f"there is no row to use in {named}")
    return read


def _take(read: Read, place: Place, fields: Mapping[str, object] | str, reading: Reading) -> None:
    if isinstance(fields, str):
        read.bad.append(BadRow(place, fields))
        return
    try:
        example, ignored = convert(fields, reading)
    except RejectedAnswer:
        read.rejected.append(place)
        return
    except DataError as error:
        read.bad.append(BadRow(place, str(error)))
        return
    read.rows.append(Row(place, example))
    read.ignored_fields.update(ignored)


def _refusal(bad: list[BadRow]) -> str:
    by_reason: dict[str, list[str]] = {}
    for row in bad[:SHOWN]:
        by_reason.setdefault(row.reason, []).append(str(row.place))
    shown = "; ".join(
        f"{', '.join(dict.fromkeys(places))}: {reason}" for reason, places in by_reason.items()
    )
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    return (
        f"{count} cannot be read: {shown}{more}. "
        "Correct them, or leave them out with `--bad-rows drop`"
    )


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["MAX_LINE", "BadRow", "Place", "Read", "Row", "Source", "file_digest", "read_rows"]
