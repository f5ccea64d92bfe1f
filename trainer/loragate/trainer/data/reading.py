"""Reads JSONL and CSV files to examples, in the four formats of training data.

What cannot be read is reported with file and line. A line is read in bounded pieces, so that a file
without line ends, or one that is no text, takes no more memory than `MAX_LINE` characters. A format
is known by its fields. What cannot be trained on (a tool call, a picture, a turn that is not to be
learnt) is refused with a reason and never left out silently.
"""

import codecs
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, cast

from loragate.trainer.data.example import ROLES, DataError, Example, Message, Role, check_order
from loragate.trainer.data.settings import FormatName, Reading, Track, untracked

Fields = Mapping[str, object]
_SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_EMPTY: tuple[object, ...] = (None, "", [], {})
MAX_LINE = 4_000_000  # characters
SHOWN = 5  # bad rows in an error's sentence
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of rows: the fields that a row must have, and those that it may have."""

    name: FormatName
    needs: tuple[str, ...]
    may: tuple[str, ...]
    convert: Callable[[Fields], tuple[Message, ...]]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset((*self.needs, *self.may))


def convert(row: Fields, reading: Reading) -> tuple[Example, frozenset[str]]:
    """Returns the example, and the names of fields that were not used.

    Raises DataError with the reason; the caller adds file and line.
    """
    form = _format_of(row, reading.format)
    if missing := [field for field in form.needs if field not in row]:
        raise DataError(f"the field {missing[0]!r} of the format {form.name!r} is missing")
    messages = form.convert(row)
    check_order(messages)
    taken = form.fields | {reading.label_field, reading.group_field, "id"}
    example = Example(
        messages,
        label=_short_text(row, reading.label_field),
        group=_short_text(row, reading.group_field),
        id=_short_text(row, "id"),
    )
    return example, frozenset(row) - taken


def _format_of(row: Fields, wanted: FormatName) -> Format:
    if wanted != "auto":
        return next(form for form in _FORMATS if form.name == wanted)
    for form in _FORMATS:
        if all(field in row for field in form.needs):
            return form
    known = "; ".join(" + ".join(form.needs) for form in _FORMATS)
    raise DataError(
        f"the fields {', '.join(sorted(row)) or '(none)'} make none of the known formats ({known})"
    )


def _from_messages(row: Fields) -> tuple[Message, ...]:
    if row.get("tools") not in _EMPTY or row.get("functions") not in _EMPTY:
        raise DataError("tools cannot be learnt from a row; leave the field 'tools' out")
    return _turns(row["messages"], "messages")


def _turns(turns: object, field: str) -> tuple[Message, ...]:
    if not isinstance(turns, list):
        raise DataError(f"the field {field!r} must be a list of turns")
    return tuple(_turn(turn) for turn in cast(list[object], turns))


def _turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError("a turn must be an object with 'role' and 'content'")
    turn = cast(dict[str, object], turn)
    role = turn.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise DataError(f"a turn's role must be one of {', '.join(ROLES)}")
    if turn.get("tool_calls") not in _EMPTY or turn.get("function_call") not in _EMPTY:
        raise DataError("a turn calls a tool, which cannot be learnt here yet")
    if turn.get("weight") not in (None, 1, 1.0):
        raise DataError("a turn has a weight other than 1; every answer of a row is learnt")
    return Message(cast(Role, role), _content(turn.get("content")))


def _content(content: object) -> str:
    """Text, or OpenAI's list of parts where all of them are text."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_part(part) for part in cast(list[object], content))
        case _:
            raise DataError("a turn's content is neither text nor a list of parts")


def _part(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise DataError("a turn has a part that is no text; only text can be learnt")


def _from_instruction(row: Fields) -> tuple[Message, ...]:
    if row.get("history") not in _EMPTY:
        raise DataError("the field 'history' is not read; give the row as 'messages'")
    question = "\n\n".join(
        part for field in ("instruction", "input") if (part := _text(row, field)).strip()
    )
    return _conversation(_text(row, "system"), question, _text(row, "output"))


def _from_prompt(row: Fields) -> tuple[Message, ...]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        before = _turns(prompt, "prompt") if isinstance(prompt, list) else ()
        after = _turns(completion, "completion") if isinstance(completion, list) else ()
        asked = before or (Message("user", _text(row, "prompt")),)
        return (*asked, *(after or (Message("assistant", _text(row, "completion")),)))
    return _conversation(_text(row, "system"), _text(row, "prompt"), _text(row, "completion"))


def _from_sharegpt(row: Fields) -> tuple[Message, ...]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise DataError("the field 'conversations' must be a list of turns")
    if row.get("tools") not in _EMPTY:
        raise DataError("tools cannot be learnt from a row; leave the field 'tools' out")
    said = tuple(_sharegpt_turn(turn) for turn in cast(list[object], turns))
    system = _text(row, "system")
    return (Message("system", system), *said) if system.strip() else said


def _sharegpt_turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError("a turn must be an object with 'from' and 'value'")
    turn = cast(dict[str, object], turn)
    role = _SHAREGPT_ROLES.get(str(turn.get("from")))
    if role is None:
        raise DataError(f"a turn's 'from' must be one of {', '.join(_SHAREGPT_ROLES)}")
    return Message(role, _text(turn, "value"))


def _conversation(system: str, question: str, answer: str) -> tuple[Message, ...]:
    turns = (Message("user", question), Message("assistant", answer))
    return (Message("system", system), *turns) if system.strip() else turns


def _text(row: Fields, field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"the field {field!r} must be text")
    return value


def _short_text(row: Fields, field: str) -> str | None:
    """A label, group or id, which may be text or a whole number; None where it is empty."""
    value = row.get(field)
    if value is None or isinstance(value, (str, int)):
        return str(value).strip() or None if value is not None else None
    raise DataError(f"the field {field!r} must be text or a whole number")


_FORMATS = (
    Format("messages", ("messages",), ("tools", "functions"), _from_messages),
    Format("sharegpt", ("conversations",), ("system", "tools"), _from_sharegpt),
    Format("prompt", ("prompt", "completion"), ("system",), _from_prompt),
    Format("instruction", ("instruction", "output"), ("input", "system", "history"),
           _from_instruction),
)  # fmt: skip


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
