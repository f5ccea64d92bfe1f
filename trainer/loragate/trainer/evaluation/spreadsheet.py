"""CSV files that go through spreadsheets and come back.

Spreadsheets run cells that begin with = + - or @ as formulas, turn what looks like a number or a
date into one, write semicolons where the decimal sign is a comma, write code pages on Windows, and
add empty rows. What is written here is safe from the first two, and what is read may have had the
rest done to it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loragate.trainer.errors import EvaluationError

_FORMULA: Final = "=+\\-@\uff1d\uff0b\uff0d\uff20"  # the latter four are full-width
_TEXT_MARK: Final = "'"
_INVISIBLE_MARK: Final = "\u2060"  # a word joiner: no formula begins with one, and nobody sees it
# What a spreadsheet would take for a formula, a number, a date or a truth value; and what has a
# mark already, so that taking the mark away is always right.
_MARKED_FIRST: Final = re.compile(
    rf"[\s\"]*[{_FORMULA}\t\r{_TEXT_MARK}]|[\d.,:/ %$€£eE+-]*\d[\d.,:/ %$€£eE+-]*$|(true|false)$",
    re.IGNORECASE,
)
# Where another separator than the comma would begin a cell within a cell.
_CELL_INSIDE: Final = re.compile(rf"(?<=[;|\t\r\n])(?=[ \"]*[{_FORMULA}{_INVISIBLE_MARK}])")
_MARK_INSIDE: Final = re.compile(rf"(?<=[;|\t\r\n]){_INVISIBLE_MARK}")
_NEW_LINE: Final = re.compile(r"\r\n|\r|\n")
_SEPARATORS: Final = (",", ";", "\t", "|")
# Without vowels no item is a word, a month or a number to a spreadsheet.
_LETTERS: Final = "bcdfghjklmnpqrstvwxz"
_ITEM_LENGTH: Final = 12
_LARGEST: Final = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class TableRow:
    """`number` is the row's, counted from 1 as spreadsheets do; `cells` are by column."""

    number: int
    cells: dict[str, str]


def harmless(text: str) -> str:
    """The text as a cell that no spreadsheet runs or changes; `original` reads it back."""
    text = _CELL_INSIDE.sub(_INVISIBLE_MARK, text)
    return _TEXT_MARK + text if _MARKED_FIRST.match(text) else text


def original(cell: str) -> str:
    """The text that `harmless` made the cell of."""
    return _MARK_INSIDE.sub("", cell.removeprefix(_TEXT_MARK))


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """CSV, with every cell harmless."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return out.getvalue()


def table_bytes(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """The same as a file: spreadsheets take one without a byte order mark for no UTF-8."""
    return table_text(columns, rows).encode("utf-8-sig")


def item_id(*said: str) -> str:
    """A short id of what is said, which no spreadsheet takes for anything else."""
    digest = hashlib.sha256("\0".join(said).encode("utf-8", "replace")).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:_ITEM_LENGTH])


def require_unfilled(path: Path, key: str, fixed: Collection[str], advice: str) -> None:
    """Raises EvaluationError where the file is a sheet on which somebody has filled in a column
    that is not `fixed`.
    """
    if not path.exists():
        return
    filled = 0
    for row in read_table(path, key):
        filled += any(row.cells[name].strip() for name in row.cells.keys() - set(fixed))
    if filled:
        raise EvaluationError(
            f"{path} is filled in in {filled} rows, so it is not written over; {advice}, or move it"
        )


def read_table(path: Path, key: str, *, has_texts: bool = False) -> list[TableRow]:
    """The rows that are not empty, with `original` cells; `key` is a column that must be there.
    Names of columns are in lower case. Of a table that `has_texts` to keep every letter counts, so
    it has to be in UTF-8 or UTF-16. Raises EvaluationError.
    """
    return list(_rows(_text_of(path, has_texts=has_texts), path, key))


def _text_of(path: Path, *, has_texts: bool) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise EvaluationError(f"{path} cannot be read as CSV: it has more than 64 MiB")
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read as CSV: {error.strerror}") from error
    if content.startswith(b"PK\x03\x04"):
        raise EvaluationError(f"{path} is a workbook, no CSV; save it as CSV (UTF-8), then read it")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if has_texts:
            raise EvaluationError(
                f"{path} is in a code page of Windows, in which letters may be lost; save it as "
                "CSV (UTF-8), then read it"
            ) from None
        # A Windows code page; which one plays no part for items and numbers.
        return content.decode("cp1252", errors="replace")


def _rows(text: str, path: Path, key: str) -> Iterator[TableRow]:
    first, *rest = _NEW_LINE.split(text, maxsplit=1)
    if first.strip().strip('"').lower().startswith("sep="):  # as Excel writes and hides it
        text = "".join(rest)
    header = _NEW_LINE.split(text, maxsplit=1)[0]
    separator = next((each for each in _SEPARATORS if key in _names(header, each)), None)
    if separator is None:
        raise EvaluationError(
            f"{path} has no column {key!r} in its first row; use the sheet as it was written, "
            "and save it as CSV"
        )
    limit = csv.field_size_limit(_LARGEST)
    try:
        found = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise EvaluationError(f"{path} cannot be read as CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    names = _names(header, separator)
    for number, cells in enumerate(found[1:], start=2):
        if any(cell.strip() for cell in cells):
            yield TableRow(
                number,
                {name: original(cell) for name, cell in zip(names, cells, strict=False)},
            )


def _names(header: str, separator: str) -> list[str]:
    cells = next(csv.reader([header], delimiter=separator), [])
    return [cell.strip().lower() for cell in cells]
