"""The rows between all steps, and the files and folders of them."""

from pathlib import Path

import pytest

from loragate.trainer.data.example import (
    DataError,
    Example,
    digest_of,
    read_examples,
    write_examples,
)
from loragate.trainer.data.splits import SplitFolder, SplitName, write_split_folder
from support.training.examples import example, write_jsonl

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def one_row_each() -> dict[SplitName, tuple[Example, ...]]:
    return {"train": (example("a"),), "validation": (example("b"),), "test": (example("c"),)}


def test_what_was_written_is_read_back(tmp_path: Path):
    written = [example("Wie heißt du?", label="name", group="g"), example("a\nb\u2028c")]
    write_examples(tmp_path / "rows.jsonl", written)
    assert read_examples(tmp_path / "rows.jsonl") == written


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "a row must be a JSON object"),
        ({"messages": [USER, ANSWER], "weight": 2}, "'weight' is unknown"),
        ({"text": "x"}, "'text' is unknown"),
        ({}, "'messages' is missing"),
        ({"messages": [USER]}, "there is no answer"),
        ({"messages": [ANSWER]}, "there is no question"),
        ({"messages": [USER, ANSWER, USER]}, "the last turn is of the user"),
        ({"messages": [USER, USER, ANSWER]}, "turns 1 and 2 are both of the user"),
        ({"messages": [{"role": "bot", "content": ""}]}, "the role 'bot' is unknown"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "there is no answer"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "is no text"),
        ({"messages": [USER, ANSWER], "label": 3}, "'label' must be text"),
        (
            {"messages": [USER, ANSWER, {"role": "system", "content": "x"}]},
            "a system message can only come first",
        ),
    ],
)
def test_a_row_that_cannot_be_learnt_is_refused_with_its_line(
    row: object, reason: str, tmp_path: Path
):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER]}, row])
    with pytest.raises(DataError, match=reason) as refused:
        read_examples(file)
    assert f"{file}:2:" in str(refused.value)


def test_a_truncated_line_and_wrong_bytes_are_refused(tmp_path: Path):
    (tmp_path / "cut.jsonl").write_text('{"messages": [')
    with pytest.raises(DataError, match=r"cut\.jsonl:1"):
        read_examples(tmp_path / "cut.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


def test_a_digest_depends_on_what_rows_say_and_not_on_their_order():
    one, other = example("a"), example("b")
    assert digest_of([one, other]) == digest_of([other, one])
    assert digest_of([one, other]) != digest_of([one, example("b", "No.")])
    assert digest_of([one]) != digest_of([one, one])


def test_a_folder_of_splits_is_read_back_with_its_digest(tmp_path: Path):
    splits = one_row_each()
    written = write_split_folder(tmp_path / "splits", splits, {"seed": 3})
    read = SplitFolder.read(tmp_path / "splits")
    assert read.splits == splits
    assert read.digest == written.digest
    assert read.sheet["seed"] == 3


def test_a_row_moved_between_splits_by_hand_is_noticed(tmp_path: Path):
    splits = one_row_each()
    write_split_folder(tmp_path, splits, {})
    write_examples(tmp_path / "train.jsonl", [example("a"), example("c")])
    write_examples(tmp_path / "test.jsonl", [])
    with pytest.raises(DataError, match="not those that"):
        SplitFolder.read(tmp_path)


def test_a_folder_without_a_sheet_is_no_folder_of_splits(tmp_path: Path):
    with pytest.raises(DataError, match="loragate data split"):
        SplitFolder.read(tmp_path)


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(tmp_path: Path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_examples(tmp_path / "rows.jsonl", [example("a")])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
