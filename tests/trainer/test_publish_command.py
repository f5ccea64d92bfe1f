"""`loragate publish` for runs that are finished, by what their files say now."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import typer
from rich.progress import Progress
from typer.testing import CliRunner

from loragate.adapters.base_models.preparation import BaseModel, prepare
from loragate.adapters.errors import TenantNotFound
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.trainer.cli import publish as cli_publish
from loragate.trainer.errors import RunFileError, RunFolderError
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.registry import open_registry
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.table import write_table
from loragate.trainer.settings import EvaluationSettings, OwnMetricSettings
from support.training.evaluations import evaluation_of
from support.training.finished_runs import examples, write_run

SUPPORT = AdapterName("acme", "support")
TOML = """
[evaluation]
require = ["{require}"]
[publish]
adapter = "acme/support"
reference_prompts = 0
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LORAGATE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path / "home").ensure()
    with open_registry(home) as registry:
        registry.tenants.create("acme")
    return home


@pytest.fixture
def prepared(home: Home, base: BaseModel) -> BaseModel:
    with Progress(disable=True) as progress:
        return prepare(str(base.path), home.models, progress)


@pytest.fixture(scope="module")
def evaluation(base: BaseModel, adapter: Path) -> Evaluation:
    """One answer in three is right."""
    settings = EvaluationSettings(
        counterfactual_rows=0,
        resamples=100,
        require=("accuracy >= 0",),
        metrics={"one_word": OwnMetricSettings(pattern=r"^\w+$")},
    )
    rows = examples()
    far = [True] * len(rows)
    return asyncio.run(evaluation_of(base, adapter, rows, lambda *_: "outage", settings, far=far))


def finished(root: Path, base: BaseModel, found: Evaluation, require: str) -> RunFolder:
    """A run that is trained and evaluated, and begun from `run.toml` beside its folder."""
    root.mkdir(exist_ok=True)
    run = write_run(root, base, TOML.format(require=require))
    (root / "run.toml").write_text(run.run_file.read_text())
    found.write(run.evaluation)
    return run


def publish(*arguments: object):
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_publish.add_to(app)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def versions(home: Home) -> list[str]:
    with open_registry(home) as registry:
        if not registry.adapters("acme"):
            return []
        return [str(each.version) for each in registry.versions.show(SUPPORT).versions]


@pytest.mark.parametrize("require", ["accuracy >= 0.3", "one_word on far >= 0.9"])
def test_a_finished_run_is_published_once(
    home: Home, prepared: BaseModel, evaluation: Evaluation, tmp_path: Path, require: str
) -> None:
    run = finished(tmp_path / "one", prepared, evaluation, require)
    for _ in range(2):
        ended = publish(run.root)
        assert ended.exit_code == 0, (ended.output, ended.exception)
    assert versions(home) == ["acme/support@v1"]


def test_a_requirement_that_does_not_hold_keeps_a_run_out_until_its_file_is_mended(
    home: Home, prepared: BaseModel, evaluation: Evaluation, tmp_path: Path
) -> None:
    finished(tmp_path / "one", prepared, evaluation, "accuracy >= 0.9")
    file = tmp_path / "one" / "run.toml"
    refused = publish(file)
    assert (refused.exit_code, versions(home)) == (1, [])
    assert "accuracy >= 0.9" in refused.output
    file.write_text(file.read_text().replace("0.9", "0.3"))
    assert publish(file).exit_code == 0
    assert versions(home) == ["acme/support@v1"]


def test_a_file_of_another_training_publishes_nothing(
    home: Home, prepared: BaseModel, evaluation: Evaluation, tmp_path: Path
) -> None:
    finished(tmp_path / "one", prepared, evaluation, "accuracy >= 0.3")
    file = tmp_path / "one" / "run.toml"
    file.write_text(file.read_text() + "\n[training]\nepochs = 9.0\n")
    ended = publish(file)
    assert isinstance(ended.exception, RunFolderError)
    assert "[training] epochs is 9.0 and was 3.0" in str(ended.exception)
    assert versions(home) == []


def test_a_run_is_published_under_the_name_that_is_given(
    home: Home, prepared: BaseModel, evaluation: Evaluation, tmp_path: Path
) -> None:
    run = finished(tmp_path / "one", prepared, evaluation, "accuracy >= 0.3")
    wrong = publish(run.root, "--adapter", "nobody/support")
    assert isinstance(wrong.exception, TenantNotFound)
    assert publish(run.root, "--adapter", "acme/other").exit_code == 0
    with open_registry(home) as registry:
        assert registry.versions.show(AdapterName("acme", "other")).versions


def test_the_best_run_of_a_sweep_is_published(
    home: Home, prepared: BaseModel, evaluation: Evaluation, tmp_path: Path
) -> None:
    best = finished(tmp_path / "a", prepared, evaluation, "accuracy >= 0.3")
    sweep = RunFolder(tmp_path / "sweep")
    sweep.root.mkdir()
    best.root.rename(sweep.root / "rank=8")
    write_table(sweep, [{"folder": "rank=8"}, {"folder": "rank=16"}])
    ended = publish(sweep.root)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert versions(home) == ["acme/support@v1"]


def test_a_folder_without_a_trained_run_is_told(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = publish(tmp_path / "empty")
    assert isinstance(ended.exception, RunFileError | RunFolderError)
    assert "loragate train" in str(ended.exception)


def test_a_note_of_a_version_that_the_registry_has_not_is_not_believed(
    home: Home, prepared: BaseModel, evaluation: Evaluation, tmp_path: Path
) -> None:
    run = finished(tmp_path / "one", prepared, evaluation, "accuracy >= 0.3")
    assert publish(run.root).exit_code == 0
    noted = msgspec.json.decode(run.published_file.read_bytes(), type=dict[str, str])
    run.published_file.write_bytes(msgspec.json.encode({**noted, "version": "acme/support@v9"}))
    assert publish(run.root).exit_code == 0
    assert msgspec.json.decode(run.published_file.read_bytes(), type=dict[str, str]) == noted
    assert versions(home) == [noted["version"]]
