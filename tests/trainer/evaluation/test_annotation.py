"""Sheets on which people label rows: written, filled through a spreadsheet, read back."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from loragate.adapters.errors import LoragateError
from loragate.trainer.cli.data import add_to
from loragate.trainer.data.reading import read_rows
from loragate.trainer.evaluation.agreement import agreement
from loragate.trainer.evaluation.annotation import read_labels
from loragate.trainer.evaluation.spreadsheet import table_bytes
from support.training.examples import write_jsonl

LABELS = ("billing", "outage", "moving")
Loragate = Callable[[str], Result]


@pytest.fixture
def loragate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loragate:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(rich_markup_mode=None)
    app.callback()(lambda: None)
    add_to(app)

    def run(command: str) -> Result:
        result = CliRunner().invoke(app, shlex.split(command))
        if isinstance(result.exception, LoragateError):
            raise result.exception
        return result

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Nine rows, three of which have no label, one with a hostile text."""
    rows = [{"text": f"question {n}", "label": LABELS[n % 3]} for n in range(6)]
    rows += [{"text": text} for text in ("=1+1", "a;=cmd|' /C calc'!A0", "plain")]
    return write_jsonl(tmp_path / "raw.jsonl", rows)


def fill(folder: Path, name: str, label_of: Callable[[str], str], delimiter: str = ",") -> None:
    path = folder / f"{name}.csv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open(
        "w", encoding="cp1252", errors="replace", newline=""
    ) as file:  # as Excel saves it on Windows
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"label": label_of(row["prompt"].lstrip("'"))})


def right(prompt: str) -> str:
    number = prompt.removeprefix("question ")
    return LABELS[int(number) % 3] if number.isdigit() else "billing"


@pytest.mark.usefixtures("raw")
def test_people_label_rows_and_the_agreed_ones_come_back_with_their_origin(
    loragate: Loragate, tmp_path: Path
):
    said = loragate("data annotate raw.jsonl --labels billing,outage,moving --raters anna,ben")
    assert "9 of 9 rows" in said.stdout
    sheets = tmp_path / "sheets"
    fill(sheets, "anna", lambda prompt: right(prompt).upper(), ";")
    fill(sheets, "ben", lambda prompt: "outage" if prompt == "question 0" else right(prompt))

    told = loragate("data annotate --read --rows-to labelled.jsonl").stdout

    assert "Agreement (Krippendorff's alpha, nominal): 0." in told
    assert "1 rows are labelled differently" in told
    assert "Of 5 rows that had a label, people say another one in 0" in told
    rows = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    by_prompt = {row["messages"][0]["content"]: row for row in rows}
    assert by_prompt["a;=cmd|' /C calc'!A0"]["label"] == "billing"
    assert by_prompt["plain"]["messages"][-1] == {"role": "assistant", "content": "billing"}
    assert by_prompt["plain"]["origin"] == "raw.jsonl:9, labelled by anna, ben"
    back = read_rows([tmp_path / "labelled.jsonl"])
    assert not back.ignored_fields
    assert back.rows[0].example.label in LABELS


@pytest.mark.usefixtures("raw")
def test_disagreements_are_decided_in_a_sheet_of_their_own_which_stays(
    loragate: Loragate, tmp_path: Path
):
    loragate("data annotate raw.jsonl --raters anna,ben,eve")
    for name in ("anna", "ben"):
        fill(tmp_path / "sheets", name, right)
    fill(tmp_path / "sheets", "eve", lambda prompt: "outage" if prompt == "plain" else "")
    loragate("data annotate --read")
    with (tmp_path / "sheets" / "disagreements.csv").open(encoding="utf-8-sig", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["anna"], row["ben"], row["eve"]) == ("billing", "billing", "outage")
    fill(tmp_path / "sheets", "disagreements", lambda _: "moving")

    for _ in range(2):
        found = json.loads(loragate("data annotate --read --rows-to l.jsonl --json").stdout)
        assert (found["agreed"], found["disputed"]) == (9, 0)

    rows = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    [decided] = [row for row in rows if row["messages"][0]["content"] == "plain"]
    assert decided["label"] == "moving"
    assert decided["origin"].endswith("labelled by adjudication")


@pytest.mark.usefixtures("raw")
def test_rows_without_a_label_come_first_and_a_label_that_a_row_has_is_not_shown(
    loragate: Loragate, tmp_path: Path
):
    loragate("data annotate raw.jsonl --rows 4")

    with (tmp_path / "sheets" / "rater.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    prompts = [row["prompt"] for row in rows]
    assert len(prompts) == 4
    assert sum(prompt.startswith("question") for prompt in prompts) == 1
    assert {row["label"] for row in rows} == {""}
    assert any(prompt.startswith("'=") for prompt in prompts)  # no spreadsheet runs it


@pytest.mark.usefixtures("raw")
def test_labels_that_people_change_are_listed_by_place(loragate: Loragate, tmp_path: Path):
    loragate("data annotate raw.jsonl")
    fill(tmp_path / "sheets", "rater", lambda p: "moving" if p == "question 0" else right(p))

    told = loragate("data annotate --read").stdout

    assert "raw.jsonl:1: 'billing' in the file, 'moving' by people" in told
    assert "Krippendorff" not in told  # one alone


def test_questions_without_labels_are_dealt_out_to_be_answered(loragate: Loragate, tmp_path: Path):
    (tmp_path / "questions.txt").write_text("Why?\n\nHow?\nWhen?\n", "utf-8")
    loragate("data annotate questions.txt --raters anna,ben")
    for name in ("anna", "ben"):
        path = tmp_path / "sheets" / f"{name}.csv"
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        filled = [[*[*row.values()][:3], "Because — so.", ""] for row in rows]
        path.write_bytes(table_bytes(list(rows[0]), filled))

    loragate("data annotate --read --rows-to answered.jsonl")

    rows = [json.loads(line) for line in (tmp_path / "answered.jsonl").read_text().splitlines()]
    assert sorted(row["messages"][0]["content"] for row in rows) == ["How?", "When?", "Why?"]
    assert {row["messages"][1]["content"] for row in rows} == {"Because — so."}
    assert len({row["origin"].rpartition(" ")[2] for row in rows}) == 2
    sheet = tmp_path / "sheets" / "anna.csv"
    sheet.write_bytes(sheet.read_text("utf-8-sig").encode("cp1252", "replace"))
    with pytest.raises(LoragateError, match=r"anna\.csv is in a code page of Windows"):
        loragate("data annotate --read")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("data annotate raw.jsonl --labels a,A", "'a' and 'A' cannot be told apart"),
        ("data annotate raw.jsonl --labels a,", "a label is empty"),
        ("data annotate raw.jsonl --labels a", "only one label"),
        ("data annotate raw.jsonl --raters ../x", "cannot be a file's name"),
        ("data annotate raw.jsonl --raters disagreements", "cannot be a file's name"),
        ("data annotate none.jsonl", "none.jsonl"),
        ("data annotate --read --out nowhere", "nowhere holds no sheets"),
    ],
)
@pytest.mark.usefixtures("raw")
def test_what_cannot_be_done_is_told(loragate: Loragate, command: str, reason: str):
    with pytest.raises(LoragateError, match=reason):
        loragate(command)


@pytest.mark.usefixtures("raw")
def test_a_filled_sheet_is_not_written_over_and_what_is_filled_in_wrongly_is_named(
    loragate: Loragate, tmp_path: Path
):
    loragate("data annotate raw.jsonl")
    with pytest.raises(LoragateError, match="the sheets in sheets are empty"):
        loragate("data annotate --read")
    fill(tmp_path / "sheets", "rater", lambda _: "unknown")
    with pytest.raises(LoragateError, match=r"rater.csv, row 2: 'unknown' is none of the labels"):
        loragate("data annotate --read")
    with pytest.raises(LoragateError, match=r"rater\.csv is filled in in 9 rows"):
        loragate("data annotate raw.jsonl")
    (tmp_path / "sheets" / "other.csv").write_text("item,label\nzzz,billing\n")
    (tmp_path / "sheets" / "rater.csv").unlink()
    with pytest.raises(LoragateError, match="'zzz' is no row of these sheets"):
        loragate("data annotate --read")


def test_nominal_alpha_is_that_of_krippendorffs_example():
    # Two observers, ten units, of two categories (Content Analysis, 2004, table 11.2): 0.095.
    one, other = "0100000010", "1110010000"
    units = [(a, b) for a, b in zip(one, other, strict=True)]

    found = agreement(units, 0.95, 200, 0, scale="nominal").alpha

    assert found == pytest.approx(0.095, abs=5e-4)


@given(st.lists(st.sampled_from(LABELS), min_size=2, max_size=12))
def test_people_who_say_the_same_agree_wholly_or_there_is_nothing_to_agree_on(labels: list[str]):
    found = agreement([(each, each) for each in labels], 0.95, 100, 0, scale="nominal")

    assert found.alpha == (1.0 if len(set(labels)) > 1 else None)


def test_a_folder_is_read_wherever_its_rows_are_by_then(
    loragate: Loragate, raw: Path, tmp_path: Path
):
    loragate("data annotate raw.jsonl")
    fill(tmp_path / "sheets", "rater", right)
    raw.unlink()

    assert len(read_labels(tmp_path / "sheets").agreed) == 9
