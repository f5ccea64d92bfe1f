"""`loragate data preview` shows what is learnt, and by which template."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loragate.adapters.rendering.renderer import IGNORED
from loragate.trainer.cli import data as cli_data
from support.training.tiny_runs import TEMPLATE, TinyRuns, loaded


@pytest.fixture
def command(runs: TinyRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    monkeypatch.setenv("LORAGATE_HOME", str(runs.home.root))
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_data.add_to(app)
    return app


def shown(command: typer.Typer, run: Path, *options: str) -> str:
    result = CliRunner().invoke(command, ["data", "preview", str(run), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_learnt_is_marked_and_the_template_named(
    runs: TinyRuns, command: typer.Typer
) -> None:
    run = loaded(runs, runs.run_file())
    text = shown(command, run.file, "--rows", "2")
    first, second = runs.splits.splits["train"][:2]
    assert "Template: the own one of tiny" in text
    assert "An answer ends with: <|end|>" in text
    assert f"<|turn|>assistant\n⟦{first.answer}<|end|>⟧" in text
    assert f"⟦{second.answer}<|end|>⟧" in text
    assert text.count("⟦") == 3  # and where the marks are explained


def test_the_marks_are_those_of_the_training(runs: TinyRuns, command: typer.Typer) -> None:
    run = loaded(runs, runs.run_file(data={"system_prompt": "Be brief."}))
    found = json.loads(shown(command, run.file, "--rows", "1", "--json"))
    plan = runs.plan(run.settings)
    row, decode = plan.training.rows[0], plan.renderer.decode
    (previewed,) = found["rows"]
    assert "".join(text for text, _ in previewed["pieces"]) == decode(row.ids)
    learnt = "".join(text for text, is_learnt in previewed["pieces"] if is_learnt)
    assert learnt == decode([label for label in row.labels if label != IGNORED])
    assert (previewed["tokens"], previewed["learnt"]) == (len(row.ids), row.supervised)


def test_raw_rows_are_shown_by_file_and_line(runs: TinyRuns, command: typer.Typer) -> None:
    raw = runs.root / "raw.jsonl"
    rows = [{"prompt": f"Why {n}?", "completion": "So.", "thinking": "Hm."} for n in range(3)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = loaded(runs, runs.run_file(data={"splits": "", "raw": [str(raw)]}))
    text = shown(command, run.file, "--rows", "1")
    assert f"{raw}:1: " in text
    assert "its reasoning is not learnt, since the template has no place for it" in text


def test_a_stop_token_of_the_contract_s_own_is_told(runs: TinyRuns, command: typer.Typer) -> None:
    (runs.root / "other.jinja").write_text(TEMPLATE.replace("<|end|>", "<|bos|>"))
    run = loaded(runs, runs.run_file(model={"chat_template": "other.jinja"}))
    text = shown(command, run.file)
    assert "An answer ends with: <|bos|>" in text
    assert "The contract will stop at: <|bos|>" in text


def test_a_row_that_cannot_be_learnt_is_shown_with_its_reason(
    runs: TinyRuns, command: typer.Typer
) -> None:
    (runs.root / "other.jinja").write_text("{{ raise_exception('no such turn') }}")
    run = loaded(runs, runs.run_file(model={"chat_template": "other.jinja"}))
    result = CliRunner().invoke(command, ["data", "preview", str(run.file), "--rows", "1"])
    assert result.exit_code == 1
    assert "row 1 of train: cannot be learnt: The chat template refuses" in result.stdout
