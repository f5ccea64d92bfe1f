"""Files as they are found: good, odd and broken."""

import codecs
import json
from pathlib import Path

import pytest

from loragate.trainer.data.example import DataError
from loragate.trainer.data.reading import MAX_LINE, Read, read_rows
from loragate.trainer.data.settings import Reading

GOOD = {"prompt": "Wie spät ist es?", "completion": "Fünf."}
LINE = json.dumps(GOOD, ensure_ascii=False)
DROP = Reading(bad_rows="drop")


def read_bytes(
    folder: Path, content: bytes, reading: Reading = DROP, name: str = "r.jsonl"
) -> Read:
    file = folder / name
    file.write_bytes(content)
    return read_rows([file], reading)


def questions(read: Read) -> list[str]:
    return [row.example.prompt for row in read.rows]


def bad(read: Read) -> list[tuple[int, str]]:
    return [(row.place.line, row.reason) for row in read.bad]


@pytest.mark.parametrize(
    "content",
    [
        LINE.encode(),
        f"\n{LINE}\r\n\r\n".encode(),
        codecs.BOM_UTF8 + LINE.encode(),
        codecs.BOM_UTF16_LE + LINE.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + LINE.encode("utf-16-be"),
    ],
)
def test_byte_order_marks_and_line_ends_make_no_difference(content: bytes, tmp_path: Path):
    assert questions(read_bytes(tmp_path, content)) == ["Wie spät ist es?"]


def test_another_encoding_can_be_named(tmp_path: Path):
    read = read_bytes(tmp_path, LINE.encode("cp1252"), Reading(encoding="cp1252"))
    assert questions(read) == ["Wie spät ist es?"]
    with pytest.raises(DataError, match="encoding 'klingon' is unknown"):
        read_bytes(tmp_path, LINE.encode(), Reading(encoding="klingon"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "cut o', "is the line cut off"),
        (b"caf\xe9", "no UTF-8"),
        (b'{"prompt": "a\\ud800", "completion": "b"}', "no UTF-8"),
        (b"\0\0\0", "NUL characters"),
        (b"[1, 2]", "a JSON array"),
        (b"42", "no JSON object"),
        (b"[" * 100_000, "JSON array|nested too deeply"),
        (b'{"prompt": "a"}', "none of the known formats"),
        (b'{"prompt": "' + b"x" * MAX_LINE + b'"}', "longer than"),
    ],
)
def test_one_bad_line_costs_one_row_and_is_told_with_its_line(
    line: bytes, reason: str, tmp_path: Path
):
    read = read_bytes(tmp_path, b"\n".join([LINE.encode(), line, LINE.encode()]))
    assert len(read.rows) == 2
    (number, told), = bad(read)  # fmt: skip
    assert number == 2
    assert any(part in told for part in reason.split("|")), told
    assert [row.place.line for row in read.rows] == [1, 3]


def test_bad_rows_are_refused_unless_asked_otherwise(tmp_path: Path):
    with pytest.raises(DataError, match=r"r\.jsonl:2: no JSON.*--bad-rows drop"):
        read_bytes(tmp_path, f"{LINE}\n{{\n".encode(), Reading())


def test_many_bad_rows_are_counted_and_the_first_are_shown(tmp_path: Path):
    with pytest.raises(DataError, match=r"^20 rows cannot be read: .*; and 15 more"):
        read_bytes(tmp_path, b"{\n" * 20, Reading())


@pytest.mark.parametrize("content", [b"", b"\n\n", codecs.BOM_UTF8])
@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_an_empty_file_is_refused(content: bytes, name: str, tmp_path: Path):
    with pytest.raises(DataError, match="no row to use"):
        read_bytes(tmp_path, content, name=name)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        read_rows([tmp_path / "none.jsonl"])
    with pytest.raises(DataError, match="neither JSONL nor CSV"):
        read_rows([tmp_path / "book.xlsx"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_cells_keep_delimiters_quotes_and_line_ends(delimiter: str, tmp_path: Path):
    content = delimiter.join(["prompt", "completion"]) + "\r\n"
    content += f'"a{delimiter} ""b""\r\nc"{delimiter}So.\r\nd{delimiter}e\r\n'
    read = read_bytes(tmp_path, content.encode(), name="r.csv")
    assert questions(read) == [f'a{delimiter} "b"\r\nc', "d"]
    assert [row.place.line for row in read.rows] == [2, 4]


def test_broken_csv_rows_are_told_with_their_lines(tmp_path: Path):
    lines = ["prompt,completion", "a,b", 'x"y,"z"w', "only one", "a,b,c", "d,e", '"never closed']
    read = read_bytes(tmp_path, "\n".join(lines).encode(), name="r.csv")
    assert questions(read) == ["a", "d"]
    assert [line for line, _ in bad(read)] == [3, 4, 5, 7]
    assert "1 fields, and the header has 2" in bad(read)[1][1]
    assert "quoting is broken" in bad(read)[3][1]


def test_a_huge_csv_cell_is_one_bad_row(tmp_path: Path):
    content = f"prompt,completion\n{'x' * 200_000},b\na,b\n"
    read = read_bytes(tmp_path, content.encode(), name="r.csv")
    assert questions(read) == ["a"]
    assert "field larger" in bad(read)[0][1]


def test_a_header_with_two_equal_names_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="two columns have the same name"):
        read_bytes(tmp_path, b"prompt,prompt\na,b\n", name="r.csv")


def test_sources_and_unread_fields_are_on_record(tmp_path: Path):
    read = read_bytes(tmp_path, json.dumps({**GOOD, "date": "today"}).encode())
    assert read.ignored_fields == {"date": 1}
    assert read.sources[0].rows == 1
    assert len(read.sources[0].sha256) == 64
