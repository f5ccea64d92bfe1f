"""A run's folder is its own, and --overwrite removes what a run made and nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.progress import Progress
from typer.testing import CliRunner

from loragate.trainer.cli import train as cli_train
from loragate.trainer.errors import RunFolderError
from loragate.trainer.pipeline.pipeline import check, train_run
from loragate.trainer.pipeline.sweep import sweep
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from support.training.tiny_runs import TinyRuns, loaded

ONE_STEP: dict[str, object] = {"max_steps": 1}


def begin(run: Run, *, overwrite: bool = False) -> RunFolder:
    check(run, resume=False, overwrite=overwrite)
    return run.folder


def trained(runs: TinyRuns) -> tuple[Run, RunFolder]:
    run = loaded(runs, runs.run_file(training=ONE_STEP))
    folder = begin(run)
    train_run(run)
    return run, folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("folder", [".", "..", "../project", "sub", "notes"])
def test_a_folder_with_anything_else_in_it_is_left_as_it_is(
    runs: TinyRuns, folder: str, overwrite: bool
) -> None:
    project = runs.root / "project"
    (project / "sub").mkdir(parents=True)
    (project / "notes" / "deep").mkdir(parents=True)
    for name in ("precious.csv", "sub/train.jsonl", "notes/deep/notes.md"):
        (project / name).write_text("x")
    run = msgspec.structs.replace(runs.run_file(training=ONE_STEP), folder=folder)
    (project / "run.toml").write_text(run.to_toml())
    path = project / "run.toml"
    run = Run.load(path, path.read_text(), runs.home, Progress(disable=True), runs.said.append)
    before = files(runs.root)
    with pytest.raises(RunFolderError, match="a folder of its own"):
        begin(run, overwrite=overwrite)
    assert files(runs.root) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_does_not_write_where_its_data_lie(runs: TinyRuns, overwrite: bool) -> None:
    _, folder = trained(runs)
    shutil.copytree(runs.splits.path, folder.data)
    run = runs.run_file(data={"splits": "run/data"}, training=ONE_STEP)
    with pytest.raises(RunFolderError, match=r"data lies in .*, the folder of the run that reads"):
        begin(loaded(runs, run), overwrite=overwrite)
    assert files(folder.data) == files(runs.splits.path)


def test_all_that_a_run_made_goes_and_another_begins(runs: TinyRuns) -> None:
    run, folder = trained(runs)
    (folder.evaluation).mkdir()
    (folder.evaluation / "report.html").write_text("x")
    begin(run, overwrite=True)
    kept = (folder.run_file, folder.inputs_file, folder.mark)
    assert files(folder.root) == {path.name for path in kept}
    assert train_run(run).steps == 1


def test_a_run_can_be_made_again_from_what_its_settings_came_to(runs: TinyRuns) -> None:
    run, folder = trained(runs)
    path = folder.resolved_file
    again = Run.load(path, path.read_text(), runs.home, run.progress, runs.said.append)
    assert begin(again, overwrite=True) == folder
    assert train_run(again).steps == 1


def test_a_folder_of_a_run_from_before_there_was_a_mark_can_be_begun_anew(
    runs: TinyRuns,
) -> None:
    run, folder = trained(runs)
    folder.mark.unlink()
    begin(run, overwrite=True)
    assert not folder.is_complete


@pytest.mark.parametrize("name", ["notes.md", "evaluation/ann.csv", "data/raw.csv", "more/x"])
def test_what_somebody_put_there_keeps_all_of_it_there(runs: TinyRuns, name: str) -> None:
    run, folder = trained(runs)
    (folder.root / name).parent.mkdir(exist_ok=True)
    (folder.root / name).write_text("x")
    before = files(folder.root)
    with pytest.raises(RunFolderError, match=f"holds {name.removesuffix('/x')}, which no run made"):
        begin(run, overwrite=True)
    assert files(folder.root) == before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("abcjlnorst._-", min_size=1, max_size=10), min_size=1, max_size=4))
def test_no_name_but_a_run_s_own_is_ever_removed(tmp_path: Path, names: list[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.claim()
    theirs = [folder.root / name for name in names if name not in (".", "..")]
    for path in theirs:
        path.write_text("x")
    try:
        folder.clear()
    except RunFolderError:
        assert all(path.exists() for path in theirs)
    else:  # all were names of what a run makes
        assert {path.name for path in theirs} <= {"adapter", "data", "log.jsonl", folder.mark.name}


def test_a_link_goes_and_what_it_leads_to_stays(runs: TinyRuns) -> None:
    run, folder = trained(runs)
    elsewhere = runs.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.md").write_text("x")
    (folder.data).symlink_to(elsewhere)
    begin(run, overwrite=True)
    assert not folder.data.exists()
    assert (elsewhere / "notes.md").exists()


def test_a_sweep_begun_anew_removes_its_runs_and_no_other(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training=ONE_STEP))
    folder = RunFolder(runs.root / "run-sweep")
    (tried,) = sweep(replace(run, folder=folder), ["rank=8"])
    (tried.folder.root / "notes.md").write_text("x")
    with pytest.raises(RunFolderError, match=r"notes\.md, which no run made"):
        folder.clear()
    (tried.folder.root / "notes.md").unlink()
    folder.clear()
    assert files(folder.root) == {folder.mark.name}


def test_the_command_for_an_estimate_takes_no_folder_of_somebody_else_s(
    runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGATE_HOME", str(runs.home.root))
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_train.add_to(app)
    (runs.root / "run").mkdir()
    (runs.root / "run" / "notes.md").write_text("x")
    path = loaded(runs, runs.run_file(training=ONE_STEP)).file
    ended = CliRunner().invoke(app, [str(path), "--estimate"])
    assert isinstance(ended.exception, RunFolderError)
    assert files(runs.root / "run") == {"notes.md"}
