import itertools
import tomllib
from pathlib import Path

import msgspec
import pytest

from loragate.trainer.errors import RunFileError
from loragate.trainer.run.file import convert_run_file, parse_run_file, read_run_file

SAMPLE = Path(__file__).parents[3] / "examples/train/run.toml"
SPLITS = {"data": {"splits": "splits"}}


def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name}
    return found


def test_the_sample_has_every_setting_with_its_default_and_a_comment() -> None:
    text = SAMPLE.read_text()
    written = tomllib.loads(text)
    run = convert_run_file(written)
    assert run == convert_run_file({"data": {"raw": written["data"]["raw"]}})
    # A setting without a default value is told of in a comment.
    unset = {"publish.max_tokens_cap"}
    assert leaves(written) == leaves(msgspec.to_builtins(run)) - unset
    lines = text.splitlines()
    for above, line in itertools.pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert above.startswith("#") or " = " in above, f"no comment above: {line}"


def test_what_is_written_is_read_back_equal() -> None:
    run = convert_run_file(
        {
            **SPLITS,
            "seed": 3,
            "method": {"name": "rslora", "rank": 64, "target_modules": ["q_proj"]},
            "training": {"learning_rate": 1e-4, "trackers": []},
        }
    )
    assert parse_run_file(run.to_toml(), Path("run.toml")) == run


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "needs either 'raw'"),
        ({"data": {"raw": ["a"], "splits": "b"}}, "needs either 'raw'"),
        ({**SPLITS, "trainig": {}}, "unknown setting 'trainig'"),
        ({**SPLITS, "training": {"learning_rat": 1}}, r"unknown setting 'learning_rat' in \[trai"),
        ({**SPLITS, "training": {"epochs": 0}}, "training.epochs"),
        ({**SPLITS, "training": {"precision": "fp8"}}, "training.precision"),
        ({**SPLITS, "method": {"rank": 12}}, "method.rank"),
        ({**SPLITS, "method": {"target_modules": []}}, "nothing to learn"),
        (
            {**SPLITS, "method": {"name": "full"}, "model": {"continue_from": "a/b@v1"}},
            "learns none",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(tree: dict[str, object], message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        convert_run_file(tree)


def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"none\.toml cannot be read"):
        read_run_file(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(RunFileError, match=r"bad\.toml is not valid TOML"):
        read_run_file(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("table", "setting", "wrong", "choices"),
    [
        ("method", "rank", 7, "1, 8, 16, 32, 64, 128, 256, auto"),
        ("training", "precision", "fp8", "fp32, bf16, auto"),
        ("data", "personal_data", "hide", "mask, drop, keep"),
    ],
)
def test_wrong_choice_is_answered_with_the_right_ones(
    table: str, setting: str, wrong: object, choices: str
) -> None:
    tree: dict[str, dict[str, object]] = {"data": {"splits": "splits"}}
    tree.setdefault(table, {})[setting] = wrong
    with pytest.raises(RunFileError, match=f"{wrong}.*'{table}.{setting}'; it is one of {choices}"):
        convert_run_file({**tree})
