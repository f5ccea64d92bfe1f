"""The steps of a run around its training: data, folders, sweeps, the command."""

import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from loragate.trainer.cli import train as cli_train
from loragate.trainer.data.example import write_examples
from loragate.trainer.errors import RunFileError, RunFolderError
from loragate.trainer.pipeline.pipeline import check, ready_data, train_run
from loragate.trainer.pipeline.sweep import parse_choice, runs_of, sweep
from loragate.trainer.run.file import read_run_file
from loragate.trainer.run.folder import RunFolder, RunResult
from loragate.trainer.run.run import Run
from loragate.trainer.run.table import TABLE
from loragate.trainer.training.train import Interrupted
from support.training.tiny_runs import TinyRuns, examples, loaded


def test_raw_files_are_cleaned_and_split_once(runs: TinyRuns) -> None:
    write_examples(runs.root / "raw.jsonl", examples(60))
    run = runs.run_file(
        data={"splits": "", "raw": ["raw.jsonl"], "near_duplicates": "keep", "similarity": 1.0}
    )
    run = loaded(runs, run)
    check(run, resume=False, overwrite=False)
    folder = run.folder
    made = ready_data(run)
    assert made.path == folder.data
    assert (folder.data / "report.html").is_file()
    (runs.root / "raw.jsonl").unlink()
    assert ready_data(run).digest == made.digest


def test_a_run_keeps_its_file_and_what_auto_came_to(runs: TinyRuns) -> None:
    run = runs.run_file(training={"max_steps": 2, "learning_rate": "auto"})
    run = loaded(runs, run)
    check(run, resume=False, overwrite=False)
    folder = run.folder
    train_run(run)
    assert folder.run_file.read_text() == run.text
    assert folder.resolved().training.learning_rate == 2e-4


def test_the_resolved_file_names_its_places_from_where_it_lies(runs: TinyRuns) -> None:
    run = runs.run_file(training={"max_steps": 2})
    run = loaded(runs, run)
    check(run, resume=False, overwrite=False)
    folder = run.folder
    train_run(run)
    written = read_run_file(folder.resolved_file)
    assert (written.folder, written.data.splits) == (".", "../splits")
    assert folder.resolved().data.splits == str(runs.splits.path.resolve())


def test_a_folder_with_a_run_is_not_written_over_unasked(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training={"max_steps": 2}))
    check(run, resume=False, overwrite=False)
    folder = run.folder
    train_run(run)
    with pytest.raises(RunFolderError, match=r"is complete; publish it .*anew with --overwrite"):
        check(run, resume=False, overwrite=False)
    check(run, resume=False, overwrite=True)
    assert not folder.is_complete


def test_there_has_to_be_something_to_go_on_with(runs: TinyRuns) -> None:
    with pytest.raises(RunFolderError, match="holds no run to go on with"):
        check(loaded(runs, runs.run_file()), resume=True, overwrite=False)


def test_a_sweep_tries_every_combination_and_ends_with_a_table(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training={"max_steps": 4}))
    folder = run.folder
    tried = sweep(run, ["learning_rate=1e-2,1e-5", "rank=8,16"])
    assert [one.changes for one in tried] == [
        {"learning_rate": rate, "rank": rank} for rate in (1e-2, 1e-5) for rank in (8, 16)
    ]
    table = json.loads((folder.root / TABLE).read_text())
    losses = [row["validation_loss"] for row in table]
    assert losses == sorted(losses)
    assert table[0]["learning_rate"] == 1e-2


def test_a_sweep_that_was_stopped_does_not_train_again_what_is_complete(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training={"max_steps": 2}))
    (first,) = sweep(run, ["rank=8"])
    written = first.folder.result_file.stat().st_mtime_ns
    sweep(run, ["rank=8,16"])
    assert first.folder.result_file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("rank", "write a setting and its values"),
        ("rang=8", "no setting 'rang'"),
        ("max_tokens=8", "say which: data, evaluation"),
        ("rank=12", "method.rank"),
    ],
)
def test_a_sweep_over_what_there_is_not_is_refused(
    runs: TinyRuns, choice: str, message: str
) -> None:
    run = runs.run_file()
    with pytest.raises(RunFileError, match=message):
        runs_of(run, [parse_choice(choice, run)])


def test_a_setting_that_two_tables_have_can_be_named_with_its_table(runs: TinyRuns) -> None:
    run = runs.run_file()
    ((changed, changes),) = runs_of(run, [parse_choice("data.max_tokens=99", run)])
    assert changed.data.max_tokens == 99
    assert changes == {"max_tokens": 99}


@pytest.fixture
def command(runs: TinyRuns, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("LORAGATE_HOME", str(runs.home.root))
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_train.add_to(app)
    return app


def test_the_command_trains_and_says_how_it_went(runs: TinyRuns, command: typer.Typer) -> None:
    path = loaded(runs, runs.run_file(training={"max_steps": 4})).file
    ended = CliRunner().invoke(command, [str(path), "--only-train"])
    assert ended.exit_code == 0, ended.output
    assert "The validation loss fell from" in ended.stdout
    assert "tokens/s" in ended.stdout
    as_json = CliRunner().invoke(command, [str(path), "--only-train", "--overwrite", "--json"])
    said = json.loads(as_json.stdout)
    assert said["metrics"]["training_rows"] == 48
    assert set(said["seconds"]) == {"data", "training"}


def test_the_command_shows_a_sweep_as_a_table(runs: TinyRuns, command: typer.Typer) -> None:
    path = loaded(runs, runs.run_file(training={"max_steps": 2})).file
    ended = CliRunner().invoke(command, [str(path), "--sweep", "learning_rate=1e-2,1e-5"])
    assert ended.exit_code == 0, ended.output
    assert "Best: " in ended.stdout
    assert "learning_rate=0.01" in ended.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--overwrite"], "--resume goes on with what is there"),
        (["--check", "--overwrite"], "--check trains nothing"),
        (["--estimate", "--resume"], "--estimate trains nothing"),
        (["--sweep", "rank=4,8", "--learning-curve"], "exclude each other"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    runs: TinyRuns, command: typer.Typer, options: list[str], message: str
) -> None:
    run = loaded(runs, runs.run_file())
    ended = CliRunner().invoke(command, [str(run.file), *options])
    assert ended.exit_code == 2
    assert message in " ".join(ended.output.replace("│", " ").split())
    assert not run.folder.root.exists()


def run_files(runs: TinyRuns, *folders: str, **training: object) -> list[Path]:
    files: list[Path] = []
    for number, folder in enumerate(folders):
        settings = msgspec.structs.replace(
            runs.run_file(training={"max_steps": 2, **training}), folder=folder
        )
        files.append(runs.root / f"run-{number}.toml")
        files[-1].write_text(settings.to_toml())
    return files


def test_several_run_files_are_trained_one_after_the_other(
    runs: TinyRuns, command: typer.Typer
) -> None:
    files = run_files(runs, "first", "second")
    ended = CliRunner().invoke(command, [*map(str, files), "--only-train"])
    assert ended.exit_code == 0, ended.output
    assert "Run 2 of 2: " in ended.output
    assert all(RunFolder(runs.root / name).is_complete for name in ("first", "second"))


def test_a_mistake_in_the_last_of_several_run_files_is_told_before_the_first_is_trained(
    runs: TinyRuns, command: typer.Typer
) -> None:
    files = run_files(runs, "first", "second")
    files[1].write_text(files[1].read_text().replace(str(runs.model), "nowhere"))
    ended = CliRunner().invoke(command, [*map(str, files), "--only-train"])
    assert "nowhere" in str(ended.exception)
    assert not (runs.root / "first").exists()


def test_two_run_files_with_one_folder_are_refused(runs: TinyRuns, command: typer.Typer) -> None:
    files = run_files(runs, "same", "same")
    ended = CliRunner().invoke(command, [*map(str, files), "--only-train"])
    assert ended.exit_code == 2
    assert "same folder" in " ".join(ended.output.replace("│", " ").split())


def test_a_sweep_that_is_stopped_is_told_to_be_started_as_before(
    runs: TinyRuns, command: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = loaded(runs, runs.run_file(training={"max_steps": 2})).file
    choice = ["--sweep", "learning_rate=1e-2,1e-5"]

    def stopped(_run: Run) -> RunResult:
        raise Interrupted("stopped after step 1 of 2; all is kept")

    with monkeypatch.context() as patched:
        patched.setattr("loragate.trainer.pipeline.training_process.train_apart", stopped)
        ended = CliRunner().invoke(command, [str(path), *choice, "--overwrite"])
    assert ended.exit_code == 130
    said = " ".join(ended.output.split())
    advised = said.partition("Go on with: loragate train ")[2].partition(" (what is")[0]
    assert advised == f"{path} {' '.join(choice)}"
    again = CliRunner().invoke(command, advised.split())
    assert again.exit_code == 0, again.output


def test_the_sample_and_the_help_name_the_same_file() -> None:
    sample = Path(__file__).parents[3] / "examples/train/run.toml"
    assert sample.is_file()
    assert str(sample.relative_to(Path(__file__).parents[3])) in (cli_train.train.__doc__ or "")
