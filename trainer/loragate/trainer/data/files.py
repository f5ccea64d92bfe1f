"""The files that training data are stored in, to rows of fields: JSON lines, JSON arrays, CSV and
Parquet, each also compressed by gzip, folders of them, and data sets of the Hugging Face hub.

What cannot be read is reported with file and line (with Parquet, the row). A line is read in
bounded pieces, so that a file without line ends, or one that is no text, takes no more memory than
`MAX_LINE` characters; an array of JSON is read whole.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

from loragate.trainer.data.example import DataError
from loragate.trainer.data.settings import Reading

MAX_LINE = 4_000_000  # characters
HUB = "hub:"  # before the name of a data set of the hub
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BATCH = 1_000  # rows of a Parquet file at once

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Place:
    """The file, and the line from 1, where a row begins."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files, and those within folders, which are sorted. Raises DataError for a folder that has
    none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        within = sorted(each for each in path.rglob("*") if each.is_file() and _kind_of(each))
        if not within:
            raise DataError(
                f"the folder {path} has no file of data ({', '.join(_SUFFIXES)}, perhaps with .gz)"
            )
        found += within
    return found


def _kind_of(path: Path) -> str:
    """The suffix that says what the file is; empty for none that can be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _SUFFIXES else ""


def hub_name(path: Path) -> str:
    """The data set's name, where `path` is `hub:OWNER/NAME`; or else empty."""
    _, mark, name = str(path).rpartition(HUB)
    return name if mark else ""


def rows_of(path: Path, reading: Reading) -> Iterator[tuple[Place, Fields | str]]:
    """Yields each row's fields, or the reason why it cannot be read. Raises DataError where the
    file cannot.
    """
    if name := hub_name(path):
        yield from _hub(name)
        return
    kind = _kind_of(path)
    if not kind:
        raise DataError(
            f"{path} is neither JSONL nor CSV by its name, nor JSON or Parquet; use one of "
            f"{', '.join(_SUFFIXES)}, perhaps with .gz"
        )
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        read = {".csv": _csv, ".tsv": _csv}.get(kind, _json)
        # Bytes that are no text become lone surrogates, so that one bad line costs one row.
        with (
            _bytes_of(path) as raw,
            io.TextIOWrapper(
                cast(IO[bytes], raw),
                encoding=_encoding_of(path, reading),
                errors="surrogateescape",
                newline="",
            ) as file,
        ):
            yield from read(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is no whole gzip file ({error}); fetch or write it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeError as error:
        raise DataError(f"{path} is not {_encoding_of(path, reading)}: {error}") from error
    except LookupError:
        raise DataError(f"the encoding {reading.encoding!r} is unknown; try utf-8") from None


def _bytes_of(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _encoding_of(path: Path, reading: Reading) -> str:
    with _bytes_of(path) as file:
        start = file.read(4)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    return reading.encoding


def _json(path: Path, file: TextIO) -> Iterator[tuple[Place, Fields | str]]:
    """Lines of objects; or, where the file begins with a bracket, or with an object of several
    lines that holds a list, an array of them.
    """
    first = file.read(4096)
    rest = _Joined(first, file)
    start = first.lstrip("\ufeff \t\r\n")
    is_array = start.startswith("[") and not start.startswith("[" * 100)
    if is_array or (start.startswith("{") and not _ends_on_its_line(start)):
        yield from _json_whole(path, rest.read())
    else:
        yield from _jsonl(path, rest)


class _Joined:
    """A file of which the beginning was read already."""

    def __init__(self, first: str, file: TextIO) -> None:
        self._first = io.StringIO(first, newline="")
        self._file = file

    def read(self) -> str:
        return self._first.read() + self._file.read()

    def readline(self, size: int) -> str:
        line = self._first.readline(size)
        if line.endswith(("\n", "\r")) or len(line) >= size:
            return line
        return line + self._file.readline(size - len(line))


def _ends_on_its_line(start: str) -> bool:
    """Whether the first line is all of an object, or may be, as it is longer than was read."""
    line, end, _ = start.partition("\n")
    return not end or line.rstrip() != "{"


def _json_whole(path: Path, text: str) -> Iterator[tuple[Place, Fields | str]]:
    at = len(text) - len(text.lstrip("\ufeff \t\r\n"))
    if text[at] == "{":
        held = _list_within(text[at:])
        if held is None:
            yield from _jsonl(path, io.StringIO(text, newline=""))
            return
        for number, item in enumerate(held, start=1):
            yield Place(str(path), number), _object(item)
        return
    decoder, at, line, seen = json.JSONDecoder(object_pairs_hook=_once), at + 1, 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line, seen = line + text.count("\n", seen, at), at
        if at >= len(text) or text[at] == "]":
            break
        place = Place(str(path), line)
        try:
            item, at = decoder.raw_decode(text, at)
            yield place, _object(item)
        except (ValueError, RecursionError) as error:
            yield place, _reason(error)
            # On from the next line that looks like a row.
            following = text.find("\n{", at + 1)
            at = following + 1 if following >= 0 else len(text)
    if at >= len(text) or text[at + 1 :].strip():
        yield Place(str(path), line), "the array has no end here; is the file cut off?"


def _list_within(text: str) -> list[object] | None:
    """The rows of an object such as {"data": [...]}; None where it has no list of them."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    lists = [
        cast(list[object], value)
        for value in cast(dict[str, object], tree).values()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    ]
    is_row = any(name in tree for name in ("messages", "conversations", "prompt", "instruction"))
    return lists[0] if len(lists) == 1 and not is_row else ([tree] if is_row else None)


def _jsonl(path: Path, file: "TextIO | _Joined") -> Iterator[tuple[Place, Fields | str]]:
    for place, line in _lines(path, file):
        if not line.strip():
            continue
        yield place, _flaw_of(line) or _json_fields(line.strip())


def _json_fields(line: str) -> Fields | str:
    try:
        fields = json.loads(line, object_pairs_hook=_once)
    except (RecursionError, ValueError) as error:
        if line.lstrip().startswith("[") and not isinstance(error, RecursionError):
            return "a JSON array; put one object on each line instead"
        return _reason(error)
    if isinstance(fields, list):
        return "a JSON array; put one object on each line instead"
    return _object(fields)


class _Twice(ValueError):
    """A key that is there twice."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"the field {twice!r} is there twice; remove one")
    return fields


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, _Twice):
        return str(error)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return f"no JSON ({reason}); is the line cut off?"


def _object(fields: object) -> Fields | str:
    if not isinstance(fields, dict):
        return "the line is no JSON object"
    if flaw := _flaw_of(json.dumps(fields, ensure_ascii=False)[: MAX_LINE - 1]):
        return flaw  # an escape such as \\ud800 made half a character
    return cast(dict[str, object], fields)


def _parquet(path: Path) -> Iterator[tuple[Place, Fields | str]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with _bytes_of(path) as raw:
            # Parquet is read from its end, which a gzip stream has not.
            source = pa.BufferReader(raw.read()) if path.suffix.lower() == ".gz" else str(path)
            file = parquet.ParquetFile(source)
            names = _class_names(file.schema_arrow.metadata)
            number = 0
            for batch in file.iter_batches(_BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield Place(str(path), number), _named(fields, names)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no whole Parquet file ({reason}); fetch it again") from error


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of classes that the hub's files keep as numbers."""
    try:
        info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = cast(dict[str, dict[str, object]], info["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        name: cast(list[str], feature["names"])
        for name, feature in features.items()
        if isinstance(feature, dict) and isinstance(feature.get("names"), list)
    }


def _named(fields: dict[str, object], names: Mapping[str, list[str]]) -> dict[str, object]:
    for field, known in names.items():
        value = fields.get(field)
        if isinstance(value, int) and 0 <= value < len(known):
            fields[field] = known[value]
    return fields


def _hub(name: str) -> Iterator[tuple[Place, Fields | str]]:
    """The rows of a data set's train split, or of the split behind a colon."""
    from datasets import ClassLabel, load_dataset

    name, _, part = name.partition(":")
    try:
        rows = load_dataset(name, split=part or "train")
    # The hub's client raises what its many layers do.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the data set {name!r} cannot be fetched from the hub ({reason}); check its name and "
            "the network, or download it and name its files"
        ) from error
    features = getattr(rows, "features", None) or {}
    names = {
        field: list(kind.names) for field, kind in features.items() if isinstance(kind, ClassLabel)
    }
    for number, fields in enumerate(rows, start=1):
        yield Place(f"{HUB}{name}", number), _named(dict(cast(Fields, fields)), names)


def _lines(path: Path, file: "TextIO | _Joined") -> Iterator[tuple[Place, str]]:
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


def _csv(path: Path, file: TextIO) -> Iterator[tuple[Place, Fields | str]]:
    csv.field_size_limit(MAX_LINE - 1)
    lines = _lines(path, file)
    first = next(lines, None)
    skipped = 1
    if first is not None and first[1].lower().startswith("sep="):  # as spreadsheets write it
        first, skipped = next(lines, None), 2
    if first is None:
        return
    if flaw := _flaw_of(first[1]):
        yield first[0], flaw
        return
    bare = _QUOTED.sub("", first[1])
    delimiter = max(",;\t|", key=bare.count)
    header = [
        name.strip().strip("\ufeff") for name in next(csv.reader([first[1]], delimiter=delimiter))
    ]
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have the same name; rename one")
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    while True:
        place = Place(str(path), reader.line_num + skipped + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, _csv_flaw(error)
            continue
        if cells:
            yield place, _csv_fields(header, cells)


def _csv_flaw(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"a cell is longer than {MAX_LINE:,} characters (field larger than allowed)"
    return f"the quoting is broken ({error})"


def _csv_fields(header: list[str], cells: list[str]) -> Fields | str:
    if flaw := _flaw_of("".join(cells)):
        return flaw
    if len(cells) != len(header):
        return f"there are {len(cells)} fields, and the header has {len(header)}"
    return dict(zip(header, cells, strict=True))
