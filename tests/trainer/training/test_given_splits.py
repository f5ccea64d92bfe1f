"""Validation and test rows that are given: by files of one's own, or by the name of a test set."""

from pathlib import Path

import pytest

from loragate.trainer.data.example import Example
from loragate.trainer.errors import RunFileError
from loragate.trainer.pipeline.pipeline import ready_data
from support.training.examples import distinct, example, write_jsonl
from support.training.tiny_runs import TinyRuns


def write(path: Path, rows: list[Example]) -> str:
    write_jsonl(path, [{"prompt": row.prompt, "completion": row.answer} for row in rows])
    return path.name


def raw(name: str, **data: object) -> dict[str, object]:
    return {"splits": "", "raw": [name], "max_tokens": 900, **data}


def test_rows_of_own_files_are_validated_and_tested(runs: TinyRuns) -> None:
    rows = distinct(30)
    dressed = example(f"Hello, {rows[0].prompt}. Thanks!", rows[0].answer)
    names = [
        write(runs.root / "raw.jsonl", [dressed, *rows[1:20]]),
        write(runs.root / "validation.jsonl", rows[20:25]),
        write(runs.root / "test.jsonl", [rows[0], *rows[25:]]),
    ]
    data = raw(names[0], validation=[names[1]], test=[names[2]])
    folder = ready_data(runs.run(runs.run_file(data=data)))
    assert {row.prompt for row in folder.splits["test"]} == {
        row.prompt for row in [rows[0], *rows[25:]]
    }
    assert len(folder.splits["validation"]) == 5
    assert {row.prompt for row in folder.splits["train"]} == {row.prompt for row in rows[1:20]}
    assert folder.sheet["left_out"] == 1


def test_a_test_set_by_name_stays_over_runs_that_have_more_rows(runs: TinyRuns) -> None:
    name = write(runs.root / "raw.jsonl", distinct(60))
    first = ready_data(runs.run(runs.run_file(data=raw(name, test_set="core")), "one"))
    tested = {row.prompt for row in first.splits["test"]}
    like = example(f"Good morning! {first.splits['test'][0].prompt}", "a0")
    write(runs.root / "raw.jsonl", [*distinct(120), like])
    second = ready_data(runs.run(runs.run_file(data=raw(name, test_set="core")), "two"))
    assert {row.prompt for row in second.splits["test"]} == tested
    assert not tested & {row.prompt for row in second.splits["train"]}
    assert like.prompt not in {row.prompt for row in second.splits["train"]}
    assert len(second.splits["train"]) > len(first.splits["train"])


@pytest.mark.parametrize("data", [{"test_set": "core"}, {"test": ["a.jsonl"]}])
def test_given_rows_beside_splits_are_refused(runs: TinyRuns, data: dict[str, object]) -> None:
    with pytest.raises(RunFileError, match="go with 'raw'"):
        runs.run_file(data=data)


def test_the_name_of_a_test_set_is_no_path(runs: TinyRuns) -> None:
    with pytest.raises(RunFileError, match="test_set"):
        runs.run_file(data=raw("raw.jsonl", test_set="../core"))
