"""`loragate data check`, `clean` and `split`, as a user runs them."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from loragate.trainer.cli.data import add_to
from loragate.trainer.data.example import DataError, read_examples
from loragate.trainer.data.splits import SplitFolder
from support.training.examples import distinct, example, write_jsonl

Loragate = Callable[[str], Result]


@pytest.fixture
def loragate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loragate:
    """Runs a command in an empty folder; a DataError comes through as it does to `main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAGATE_HOME", str(tmp_path / "home"))
    app = typer.Typer(rich_markup_mode=None)
    app.callback()(lambda: None)
    add_to(app)

    def run(command: str) -> Result:
        result = CliRunner().invoke(app, shlex.split(command))
        if isinstance(result.exception, DataError):
            raise result.exception
        return result

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    rows = [*distinct(40), example("Mail a@b.example", "ok"), example("Mail a@b.example", "ok")]
    return write_jsonl(tmp_path / "raw.jsonl", [row.to_json() for row in rows])


@pytest.mark.usefixtures("raw")
def test_check_judges_and_writes_the_report_alone(loragate: Loragate, tmp_path: Path):
    result = loragate("data check raw.jsonl --report out/report.html")
    assert result.exit_code == 0
    assert "42 rows read, 41 kept, 1 dropped" in result.stdout
    assert "exact duplicate" in result.stdout
    assert "Usable, with warnings" in result.stdout
    assert (tmp_path / "out" / "report.html").read_text("utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw.jsonl"]


@pytest.mark.usefixtures("raw")
def test_check_as_json_has_the_figures(loragate: Loragate):
    found = json.loads(loragate("data check raw.jsonl --json").stdout)
    assert (found["rows_read"], found["rows_kept"], found["masked_rows"]) == (42, 41, 2)
    assert found["quality"]["level"] == "warn"
    assert found["drops"]["exact_duplicate"]["count"] == 1


def test_check_refuses_too_few_rows_after_showing_them(loragate: Loragate, tmp_path: Path):
    write_jsonl(tmp_path / "few.jsonl", [row.to_json() for row in distinct(3)])
    with pytest.raises(DataError, match="3 rows are too few"):
        loragate("data check few.jsonl")


@pytest.mark.usefixtures("raw")
def test_clean_and_split_make_a_folder_that_a_run_reads(loragate: Loragate, tmp_path: Path):
    cleaned = loragate("data clean raw.jsonl --out clean.jsonl")
    assert "Wrote clean.jsonl and clean.drops.jsonl" in cleaned.stdout
    assert len(read_examples(tmp_path / "clean.jsonl")) == 41
    assert "[EMAIL]" in (tmp_path / "clean.jsonl").read_text("utf-8")
    assert len((tmp_path / "clean.drops.jsonl").read_text("utf-8").splitlines()) == 1
    result = loragate("data split clean.jsonl --out splits --validation 0.2 --seed 4")
    assert result.exit_code == 0
    folder = SplitFolder.read(tmp_path / "splits")
    assert sum(map(len, folder.splits.values())) == 41
    assert all(folder.splits.values())
    assert folder.sheet["seed"] == 4
    assert folder.digest[:12] in result.stdout


@pytest.mark.usefixtures("raw")
def test_split_as_json_is_the_sheet(loragate: Loragate, tmp_path: Path):
    loragate("data clean raw.jsonl --out clean.jsonl")
    printed = json.loads(loragate("data split clean.jsonl --out splits --json").stdout)
    assert printed == json.loads((tmp_path / "splits" / "data.json").read_text("utf-8"))


def test_split_refuses_raw_rows_and_names_the_command_that_converts_them(
    loragate: Loragate, tmp_path: Path
):
    write_jsonl(tmp_path / "raw.jsonl", [{"prompt": "a", "completion": "b"}] * 20)
    with pytest.raises(DataError, match=r"raw\.jsonl:1: .* `loragate data clean`"):
        loragate("data split raw.jsonl --out splits")


def test_bad_rows_are_refused_or_dropped_by_choice(loragate: Loragate, raw: Path):
    with raw.open("a") as file:
        file.write('{"cut')
    with pytest.raises(DataError, match=r"raw\.jsonl:43: no JSON"):
        loragate("data clean raw.jsonl --out clean.jsonl")
    result = loragate("data clean raw.jsonl --out clean.jsonl --bad-rows drop")
    assert "bad row" in result.stdout


@pytest.mark.parametrize("command", ["check", "clean", "split"])
def test_help_teaches_with_examples(command: str, loragate: Loragate):
    text = loragate(f"data {command} --help").stdout
    assert f"$ loragate data {command} " in text
    assert "--json" in text


def test_looking_at_data_imports_nothing_that_is_slow():
    slow = ["torch", "transformers", "sklearn", "matplotlib", "pyarrow", "datasets", "scipy.stats"]
    script = (
        "import sys, loragate.trainer.cli.data, loragate.trainer.data.preparing\n"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
