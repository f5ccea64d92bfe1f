"""`loragate train` from raw rows to a published version, on a tiny model and a real server."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from rich.progress import Progress
from typer.testing import CliRunner, Result

from loragate.adapters.base_models.preparation import prepare
from loragate.adapters.format.files import inspect
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.records import VersionRecord
from loragate.trainer.cli import publish as cli_publish
from loragate.trainer.cli import train as cli_train
from loragate.trainer.data.example import write_examples
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.registry import open_registry
from loragate.trainer.run.folder import RunFolder
from support.training.tiny_runs import examples, write_model

pytestmark = pytest.mark.engine

SORTER = AdapterName("acme", "sorter")
RUN = """
[data]
raw = ["raw.jsonl"]
near_duplicates = "keep"
conflicts = "keep"
similarity = 1.0
[model]
base = "{model}"
[method]
rank = 8
[training]
max_steps = 40
learning_rate = 1e-2
evaluate_every = 20
precision = "fp32"
trackers = []
[evaluation]
max_rows = 4
counterfactual_rows = 0
resamples = 100
samples = 2
require = ["loss - base <= -0.5"]
[publish]
adapter = "acme/sorter"
promote = true
"""


@dataclass(frozen=True)
class Trained:
    """What the command left, and how it ended."""

    file: Path
    folder: RunFolder
    home: Home
    ended: Result

    def versions(self) -> tuple[VersionRecord, ...]:
        with open_registry(self.home) as registry:
            return tuple(registry.versions.show(SORTER).versions)


def command() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_train.add_to(app)
    cli_publish.add_to(app)
    return app


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("trained")
    home = Home(root / "home").ensure()
    # The engine's attention takes heads of 32 numbers and more.
    model = write_model(root / "tiny", width=128)
    with Progress(disable=True) as progress:
        prepare(str(model), home.models, progress)
    with open_registry(home) as registry:
        registry.tenants.create("acme")
    write_examples(root / "raw.jsonl", examples(200))
    file = root / "run.toml"
    file.write_text(RUN.format(model=model))
    earlier = dict(os.environ)
    os.environ["LORAGATE_HOME"] = str(home.root)
    for variable in ("LORAGATE_CONFIG", "LORAGATE_REGISTRY_URL"):
        os.environ.pop(variable, None)
    try:
        ended = CliRunner().invoke(command(), ["train", str(file)])
        yield Trained(file, RunFolder(root / "run"), home, ended)
    finally:
        os.environ.clear()
        os.environ.update(earlier)


def test_raw_rows_become_a_version_that_serves_what_was_measured(trained: Trained) -> None:
    assert trained.ended.exit_code == 0, (trained.ended.output, trained.ended.exception)
    (record,) = trained.versions()
    assert f"Published {record.version}" in trained.ended.output
    found = Evaluation.read(trained.folder.evaluation)
    assert found.requirements.holds
    assert record.manifest.metrics["loss"] == found.figures()["loss"]
    stored = inspect(trained.home.artifacts / record.version.digest)
    assert stored.manifest.reference is not None
    with open_registry(trained.home) as registry:
        assert registry.versions.show(SORTER).aliases["champion"].desired == record.version


def test_all_that_the_run_left_is_its_own(trained: Trained) -> None:
    assert not list(trained.folder.others())


@pytest.mark.parametrize("run", ["run.toml", "run"])
def test_what_is_published_is_not_published_again(trained: Trained, run: str) -> None:
    before = trained.versions()
    ended = CliRunner().invoke(command(), ["publish", str(trained.file.parent / run)])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert f"Published {before[0].version}" in ended.output
    assert trained.versions() == before


def test_the_same_command_once_more_refuses_and_says_what_to_do(trained: Trained) -> None:
    ended = CliRunner().invoke(command(), ["train", str(trained.file)])
    assert ended.exit_code == 1
    assert "is complete; publish it with `loragate publish`" in str(ended.exception)
