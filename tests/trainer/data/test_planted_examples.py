"""The example data: each planted thing is found, and nothing else is taken for one."""

import subprocess
import sys
from pathlib import Path

import pytest

from loragate.trainer.data.cleaning import Cleaned
from loragate.trainer.data.preparing import prepare
from loragate.trainer.data.settings import Cleaning, PreparationSettings, Reading
from loragate.trainer.data.splits import find_leaks
from support.training.planted_tickets import EXAMPLES, Tickets

pytestmark = pytest.mark.filterwarnings("error")


def dropped(cleaned: Cleaned, rule: str) -> set[int]:
    return {drop.place.line for drop in cleaned.drops if drop.rule == rule}


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("bad", "bad_row"), ("empty", "empty"), ("length", "length"), ("language", "language")],
)
def test_exactly_the_planted_rows_go_by_their_rule(kind: str, rule: str, tickets: Tickets):
    assert dropped(tickets.prepared.report.cleaned, rule) == tickets.lines(kind) != set()


@pytest.mark.parametrize(
    ("kind", "rule"), [("exact", "exact_duplicate"), ("near", "near_duplicate")]
)
def test_one_row_of_each_planted_pair_goes_and_no_other(kind: str, rule: str, tickets: Tickets):
    pairs = [{row.line, row.of} for row in tickets.planted if row.kind == kind]
    gone = dropped(tickets.prepared.report.cleaned, rule)
    assert [len(pair & gone) for pair in pairs] == [1] * len(pairs)
    assert len(gone) == len(pairs) >= 12


def test_both_rows_of_each_planted_conflict_go(tickets: Tickets):
    lines = {
        line for row in tickets.planted if row.kind == "conflict" for line in (row.line, row.of)
    }
    assert dropped(tickets.prepared.report.cleaned, "conflict") == lines != set()


def test_mojibake_and_untidy_rows_stay_and_are_normalised(tickets: Tickets):
    cleaned = tickets.prepared.report.cleaned
    by_line = {row.place.line: row.example.prompt for row in cleaned.rows}
    planted = [by_line[line] for line in tickets.lines("mojibake") | tickets.lines("untidy")]
    assert len(planted) == 18
    assert not any(odd in text for text in planted for odd in ("Ã", "â€", "\u200b", "\u00a0", "  "))
    assert any("café" in text for text in planted)


def test_planted_personal_data_stand_nowhere_in_what_is_written(tickets: Tickets):
    folder = tickets.prepared.folder.path
    assert len(tickets.secrets) == 25
    for file in folder.iterdir():
        text = file.read_text("utf-8")
        assert [secret for secret in tickets.secrets if secret in text] == [], file.name
    assert tickets.prepared.report.cleaned.masked_rows == 25


def test_the_planted_association_is_the_only_one(tickets: Tickets):
    found = [(one.group, one.trait) for one in tickets.prepared.quality.associations]
    assert found == [("older people", "label complaint")]


def test_splits_hold_the_usual_shares_and_do_not_leak(tickets: Tickets):
    splits = tickets.prepared.folder.splits
    total = sum(len(rows) for rows in splits.values())
    shares = [len(rows) / total for rows in splits.values()]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.06)
    assert list(find_leaks(splits, 0.8)) == []
    assert {len({row.label for row in rows}) for rows in splits.values()} == {6}


def test_the_style_files_are_two_formats_with_their_planted_rows(tmp_path: Path):
    settings = PreparationSettings(Reading(bad_rows="drop"), Cleaning(conflicts="keep"))
    files = [EXAMPLES / "house_style.jsonl", EXAMPLES / "house_style_chats.jsonl"]
    cleaned = prepare(files, tmp_path, settings).report.cleaned
    assert len(dropped(cleaned, "bad_row")) == 7
    assert len(dropped(cleaned, "empty")) == 2
    assert len(dropped(cleaned, "exact_duplicate")) == 2
    assert len(cleaned.rows) > 400
    assert all(row.example.answer.endswith("Fernline, day and night.") for row in cleaned.rows)


def test_the_committed_files_are_what_the_script_writes(tmp_path: Path):
    subprocess.run([sys.executable, EXAMPLES / "make_raw.py", tmp_path], check=True)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["house_style.jsonl", "house_style_chats.jsonl", "planted.json", "tickets.csv"]
    for name in made:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes()
