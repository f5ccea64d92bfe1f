"""Files as they are found: good, odd and broken."""

import codecs
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

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
    content = f"prompt,completion\n{'x' * 200_000},b\n{'x' * MAX_LINE},b\na,b\n"
    read = read_bytes(tmp_path, content.encode(), name="r.csv")
    assert list(map(len, questions(read))) == [200_000, 1]
    assert "field larger" in bad(read)[0][1]


def test_a_header_with_two_equal_names_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="two columns have the same name"):
        read_bytes(tmp_path, b"prompt,prompt\na,b\n", name="r.csv")


def test_sources_and_unread_fields_are_on_record(tmp_path: Path):
    read = read_bytes(tmp_path, json.dumps({**GOOD, "date": "today"}).encode())
    assert read.ignored_fields == {"date": 1}
    assert read.sources[0].rows == 1
    assert len(read.sources[0].sha256) == 64


ROWS = [{"instruction": f"question number {n}", "output": f"answer {n}"} for n in range(3)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
        json.dumps({"version": 1, "data": ROWS}, indent=1),
        "\n".join(map(json.dumps, ROWS)),
    ],
)
@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.json.gz"])
def test_arrays_and_lines_of_json_are_read_alike(content: str, name: str, tmp_path: Path):
    raw = content.encode()
    read = read_bytes(tmp_path, gzip.compress(raw) if name.endswith("gz") else raw, name=name)
    assert questions(read) == [row["instruction"] for row in ROWS]
    assert bad(read) == []


def test_rows_of_an_array_have_the_lines_where_they_begin(tmp_path: Path):
    lines = [*map(json.dumps, ROWS)]
    content = f"[\n{lines[0]},\n{{broken,\n{lines[1]},\n\n17,\n{lines[2]}\n]"
    read = read_bytes(tmp_path, content.encode(), name="r.json")
    assert [row.place.line for row in read.rows] == [2, 4, 7]
    assert [line for line, _ in bad(read)] == [3, 6]
    cut = read_bytes(tmp_path, f"[\n{lines[0]},\n{lines[1][:-9]}".encode(), name="r.json")
    assert [line for line, _ in bad(cut)][:1] == [3]
    assert "cut off" in bad(cut)[0][1]


def test_a_field_that_is_there_twice_is_told(tmp_path: Path):
    read = read_bytes(
        tmp_path, b'{"prompt": "a", "prompt": "b", "completion": "c"}\n' + LINE.encode()
    )
    assert bad(read) == [(1, "the field 'prompt' is there twice; remove one")]


def test_parquet_is_read_with_the_names_of_its_classes(tmp_path: Path):
    table = pa.table({"text": ["hello there", "bye"], "label": [1, 0], "more": [None, "x"]})
    names = {"info": {"features": {"label": {"names": ["leave", "greet"]}}}}
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "r.parquet"
    )
    read = read_rows([tmp_path / "r.parquet"])
    assert [(row.example.answer, row.example.label) for row in read.rows] == [
        ("greet", "greet"),
        ("leave", "leave"),
    ]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "r.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="no whole Parquet file"):
        read_rows([tmp_path / "cut.parquet"])


def test_a_folder_is_all_its_files_of_data(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(DataError, match="has no file of data"):
        read_rows([tmp_path])
    (tmp_path / "in" / "b.jsonl").write_text(LINE)
    (tmp_path / "a.csv").write_text("prompt,completion\nWho?,Me.\n")
    assert questions(read_rows([tmp_path])) == ["Who?", GOOD["prompt"]]


def test_a_gzip_file_that_is_cut_off_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="no whole gzip file"):
        read_bytes(tmp_path, gzip.compress(LINE.encode() * 99)[:-12], name="r.jsonl.gz")


@pytest.mark.parametrize(
    "content",
    [
        b"sep=;\nprompt;completion\na, b;c\n",
        b'"prompt";"completion"\n"a, b";c\n',
        b'prompt,"completion"\n"a, b",c\n',
        codecs.BOM_UTF8 + b'"prompt",completion\n"a, b",c\n',
    ],
)
def test_tables_as_spreadsheets_write_them_are_read(content: bytes, tmp_path: Path):
    read = read_bytes(tmp_path, content, name="r.csv")
    assert [(row.example.prompt, row.example.answer) for row in read.rows] == [("a, b", "c")]
