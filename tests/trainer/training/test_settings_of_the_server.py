"""A run is made for the server that will serve it: its registry, its template, its rank."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loragate.adapters.errors import TenantNotFound
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.trainer.cli import train as cli_train
from loragate.trainer.errors import RunFileError
from loragate.trainer.pipeline.pipeline import check, ready_data, train_run
from loragate.trainer.publishing.publishing import publish_run
from loragate.trainer.registry import open_registry
from support.training.tiny_runs import TEMPLATE, TinyRuns, loaded

SORTER = AdapterName("acme", "sorter")
OTHER_TEMPLATE = "Be kind." + TEMPLATE


@pytest.fixture
def home(runs: TinyRuns) -> Home:
    """Whose own registry nobody is to make."""
    home = Home(runs.root / "own").ensure()
    home.models.rmdir()
    home.models.symlink_to(runs.home.models)
    runs.home = home
    return home


@pytest.fixture(autouse=True)
def settings(runs: TinyRuns, home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`loragate.toml` where the trainer is started."""
    folder = runs.root / "server"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for variable in ("LORAGATE_CONFIG", "LORAGATE_REGISTRY_URL"):
        monkeypatch.delenv(variable, raising=False)
    (folder / "server.jinja").write_text(OTHER_TEMPLATE)
    file = folder / "loragate.toml"
    file.write_text(
        f'[registry]\nurl = "sqlite:///{folder}/registry.db"\n'
        '[engine]\nmax_lora_rank = 8\nchat_template = "server.jinja"\n'
    )
    return file


def test_a_run_is_rendered_and_published_as_the_server_will_serve_it(
    runs: TinyRuns, home: Home
) -> None:
    with open_registry(home) as registry:
        registry.tenants.create("acme")
    publish = {"adapter": "acme/sorter", "reference_prompts": 0}
    run = loaded(runs, runs.run_file(training={"max_steps": 2}, publish=publish))
    check(run, resume=False, overwrite=False)
    train_run(run)
    published = publish_run(run.resolved(), None)
    with open_registry(home) as registry:
        (record,) = registry.versions.show(SORTER).versions
    assert record.version == published.version
    assert record.manifest.contract.chat_template == OTHER_TEMPLATE
    assert not (home.root / "registry.db").exists()


def test_a_run_s_own_template_comes_before_the_server_s(runs: TinyRuns) -> None:
    (runs.root / "own.jinja").write_text(TEMPLATE)
    run = loaded(runs, runs.run_file(model={"chat_template": "own.jinja"}))
    assert run.settings.model.chat_template == "own.jinja"


@pytest.fixture
def command(home: Home, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("LORAGATE_HOME", str(home.root))
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_train.add_to(app)
    return app


def test_a_tenant_that_is_not_there_is_told_before_the_training(
    runs: TinyRuns, command: typer.Typer
) -> None:
    run = loaded(runs, runs.run_file(publish={"adapter": "acme/sorter"}))
    ended = CliRunner().invoke(command, [str(run.file)])
    assert isinstance(ended.exception, TenantNotFound)
    assert not run.folder.root.exists()


def test_a_rank_that_the_server_does_not_take_is_told_before_the_training(
    runs: TinyRuns,
) -> None:
    publish: dict[str, object] = {"adapter": "acme/sorter"}
    run = loaded(runs, runs.run_file(method={"rank": 16}, publish=publish))
    check(run, resume=False, overwrite=False)
    folder = run.folder
    with pytest.raises(RunFileError, match=r"rank is 16, and a server here takes 8 at most"):
        train_run(run)
    assert not folder.log.exists()
    assert not folder.resolved_file.exists()


def test_a_rank_that_is_not_to_be_published_is_nobody_s_business(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(method={"rank": 16}, training={"max_steps": 1}))
    check(run, resume=False, overwrite=False)
    ready_data(run)
    assert train_run(run).steps == 1
