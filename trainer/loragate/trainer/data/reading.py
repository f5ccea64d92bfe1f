"""Reads JSONL and CSV files to examples, in the four formats of training data.

What cannot be read is reported with file and line. A line is read in bounded pieces, so that a file
without line ends, or one that is no text, takes no more memory than `MAX_LINE` characters.
"""

import codecs
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, cast

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.formats import convert
from loragate.trainer.data.settings import Reading, Track, untracked

MAX_LINE = 4_000_000  # characters
SHOWN = 5  # bad rows in an error's sentence
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """The file, and the line from 1, where a row begins."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


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


def read_rows(
    paths: Sequence[Path], reading: Reading | None = None, track: Track = untracked
) -> Read:
    """Reads every file. Raises DataError where one cannot be read, where none has a row, or where
    rows are bad and are to be refused.
    """
    reading = reading or Reading()
    read = Read()
    for path in paths:
        before = len(read.rows) + len(read.bad)
        for place, fields in track(_rows_of(path, reading), description=f"Reading {path.name}"):
            _take(read, place, fields, reading)
        rows = len(read.rows) + len(read.bad) - before
        read.sources.append(Source(str(path), file_digest(path), rows))
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
    except DataError as error:
        read.bad.append(BadRow(place, str(error)))
        return
    read.rows.append(Row(place, example))
    read.ignored_fields.update(ignored)


def _refusal(bad: list[BadRow]) -> str:
    shown = "; ".join(f"{row.place}: {row.reason}" for row in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    return (
        f"{count} cannot be read: {shown}{more}. "
        "Correct them, or leave them out with `--bad-rows drop`"
    )


def _rows_of(path: Path, reading: Reading) -> Iterator[tuple[Place, Mapping[str, object] | str]]:
    """Yields each row's fields, or the reason why it cannot be read."""
    kinds = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _jsonl, ".csv": _csv, ".tsv": _csv}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} is neither JSONL nor CSV by its name; use .jsonl or .csv")
    try:
        # Bytes that are no text become lone surrogates, so that one bad line costs one row.
        with path.open(
            encoding=_encoding_of(path, reading), errors="surrogateescape", newline=""
        ) as file:
            yield from kind(path, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeError as error:
        raise DataError(f"{path} is not {_encoding_of(path, reading)}: {error}") from error
    except LookupError:
        raise DataError(f"the encoding {reading.encoding!r} is unknown; try utf-8") from None


def _encoding_of(path: Path, reading: Reading) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    return reading.encoding


def _lines(path: Path, file: TextIO) -> Iterator[tuple[Place, str]]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        yield Place(str(path), number), line
        while line and not line.endswith(("\n", "\r")) and len(line) == MAX_LINE:
            line = file.readline(MAX_LINE)


def _flaw_of(text: str) -> str:
    """Why a line cannot be used; empty where it can."""
    if len(text) >= MAX_LINE:
        return f"the line is longer than {MAX_LINE:,} characters"
    if "\0" in text:
        return "the line has NUL characters; is this a text file?"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"there are bytes that are no UTF-8 (at character {error.start + 1}); save the file "
            "as UTF-8, or name its encoding"
        )
    return ""


def _jsonl(path: Path, file: TextIO) -> Iterator[tuple[Place, Mapping[str, object] | str]]:
    for place, line in _lines(path, file):
        if not line.strip():
            continue
        yield place, _flaw_of(line) or _json_fields(line.strip())


def _json_fields(line: str) -> Mapping[str, object] | str:
    try:
        fields = json.loads(line)
    except RecursionError:
        return "the JSON is nested too deeply"
    except ValueError as error:
        if line.lstrip().startswith("["):
            return "a JSON array; put one object on each line instead"
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return f"no JSON ({reason}); is the line cut off?"
    if isinstance(fields, list):
        return "a JSON array; put one object on each line instead"
    if not isinstance(fields, dict):
        return "the line is no JSON object"
    if flaw := _flaw_of(json.dumps(fields, ensure_ascii=False)[: MAX_LINE - 1]):
        return flaw  # an escape such as \ud800 made half a character
    return cast(dict[str, object], fields)


def _csv(path: Path, file: TextIO) -> Iterator[tuple[Place, Mapping[str, object] | str]]:
    lines = _lines(path, file)
    first = next(lines, None)
    if first is None:
        return
    if flaw := _flaw_of(first[1]):
        yield first[0], flaw
        return
    delimiter = max(",;\t|", key=first[1].count)
    header = [name.strip() for name in next(csv.reader([first[1]], delimiter=delimiter))]
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have the same name; rename one")
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    while True:
        place = Place(str(path), reader.line_num + 2)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, f"the quoting is broken ({error})"
            continue
        if cells:
            yield place, _csv_fields(header, cells)


def _csv_fields(header: list[str], cells: list[str]) -> Mapping[str, object] | str:
    if flaw := _flaw_of("".join(cells)):
        return flaw
    if len(cells) != len(header):
        return f"there are {len(cells)} fields, and the header has {len(header)}"
    return dict(zip(header, cells, strict=True))


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
