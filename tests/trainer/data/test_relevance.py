"""Rows compared with real questions."""

from pathlib import Path

import pytest

from loragate.trainer.data.example import DataError
from loragate.trainer.data.relevance import read_questions, relevance
from support.training.examples import example

ROWS = [
    example("How do I reset the boiler after it stopped?"),
    example("My bill of March is twice as high as usual."),
    example("Do you sell garden furniture in the winter?"),
]
ASKED = [
    "Hello, how do I reset my boiler? It stopped.",
    "Is there a strike of the bus drivers today",
]


def test_questions_that_no_row_is_near_are_told_with_their_share(tmp_path: Path):
    (tmp_path / "asked.txt").write_text("\n".join([*ASKED, ""]))
    found = relevance(ROWS, read_questions(tmp_path / "asked.txt"))
    assert found.far == (ASKED[1],)
    assert (found.questions, found.rows, found.unasked) == (2, 3, 2)
    told = found.finding()
    assert told.level == "warn"
    assert "Of 2 real questions 1 (50%) are near no row" in told.sentence


def test_a_file_without_questions_is_refused(tmp_path: Path):
    (tmp_path / "asked.txt").write_text("\n")
    with pytest.raises(DataError, match="has no question"):
        read_questions(tmp_path / "asked.txt")
    (tmp_path / "asked.jsonl").write_text('{"other": "a"}\n')
    with pytest.raises(DataError, match="without a question"):
        read_questions(tmp_path / "asked.jsonl")
