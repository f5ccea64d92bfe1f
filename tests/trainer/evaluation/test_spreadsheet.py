"""Sheets that go through spreadsheets and come back."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.spreadsheet import harmless, original, read_table, table_text

FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


@given(st.text())
def test_cell_reads_back_as_it_was(text: str):
    assert original(harmless(text)) == text


@given(st.text("=+-@;|\t\r\n \"',a1\u2060\uff1d", max_size=12))
def test_no_cell_is_a_formula_whatever_the_spreadsheet_separates_cells_by(text: str):
    lines = re.split(r"[\r\n]", table_text(["answer"], [[text]]))

    for separator in ";\t|":
        for cell in [cell for line in lines for cell in line.split(separator)]:
            assert cell.strip(' "')[:1] not in FORMULAS
    assert harmless(text).lstrip()[:1] not in FORMULAS


@pytest.mark.parametrize("text", ["007", "1/2", "3-4", "12.5 %", "1e5", "TRUE", "2026-11-01"])
def test_what_a_spreadsheet_would_take_for_a_number_stays_text(text: str):
    assert harmless(text) == f"'{text}"


@pytest.mark.parametrize("text", ["billing", "Yes, at 9.", "a-b", "3 rooms"])
def test_plain_text_is_left_as_it_is(text: str):
    assert harmless(text) == text


WAYS = {
    "as written": lambda text: text.encode("utf-8-sig"),
    "no byte order mark": lambda text: text.encode(),
    "Windows code page": lambda text: text.encode("cp1252"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "semicolons": lambda text: text.replace(",", ";").encode("cp1252"),
    "tabs": lambda text: text.replace(",", "\t").encode("utf-16"),
    "sep= line": lambda text: b"sep=;\r\n" + text.replace(",", ";").encode(),
    "carriage returns": lambda text: text.replace("\r\n", "\r").encode(),
    "empty rows at the end": lambda text: (text + ",,\r\n\r\n,,\r\n").encode(),
    "capitals": lambda text: text.replace("item", "Item ").encode(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_sheet_is_read_as_spreadsheets_save_it(way, tmp_path: Path):
    path = tmp_path / "sheet.csv"
    path.write_bytes(
        way("item,answer,tone\r\nbcd,Über \x84=1,4\r\nfgh,'-5,\r\n".replace("\x84", ""))
    )

    rows = read_table(path, "item")

    assert [row.cells["item"] for row in rows] == ["bcd", "fgh"]
    assert [row.cells["answer"] for row in rows] == ["Über =1", "-5"]
    assert [row.cells["tone"] for row in rows] == ["4", ""]
    assert [row.number for row in rows] == [2, 3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04rest of a workbook", "is a workbook"),
        (b"", "has no column 'item'"),
        (b"name,score\r\na,1\r\n", "has no column 'item'"),
        (b'item,answer\r\n"a,1\r\n', None),
    ],
)
def test_file_that_is_no_sheet_is_refused_with_what_to_do(
    tmp_path: Path, content: bytes, reason: str | None
):
    path = tmp_path / "sheet.csv"
    path.write_bytes(content)

    if reason is None:
        assert len(read_table(path, "item")) == 1  # an unclosed quote ends with the file
    else:
        with pytest.raises(EvaluationError, match=reason):
            read_table(path, "item")
