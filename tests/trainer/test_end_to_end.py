"""The whole way on the real model: raw tickets to an adapter that a server answers with."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import Progress
from transformers import AutoModelForCausalLM

from loragate.adapters.format.files import inspect
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.trainer.data.example import Message
from loragate.trainer.data.preparing import prepare as prepare_data
from loragate.trainer.data.settings import PreparationSettings, Reading
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.served import Serving, started
from loragate.trainer.pipeline.evaluating import evaluate_run
from loragate.trainer.pipeline.pipeline import plan_training
from loragate.trainer.publishing.publishing import Published, publish_run
from loragate.trainer.run.file import convert_run_file
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from loragate.trainer.training.train import train

# Minutes of training; `make demo-train` goes the same way, and tiny models do in the other tests.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
TICKETS = AdapterName("acme", "tickets")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("home")
    (root / "models").symlink_to(Home.from_environment().models)
    return Home(root).ensure()


@pytest.fixture(scope="module")
def run(home: Home, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Trained in a minute or two."""
    root = tmp_path_factory.mktemp("tickets")
    reading = Reading(bad_rows="drop", label_field="output", group_field="customer")
    raw = ROOT / "examples/data/tickets.csv"
    splits = prepare_data([raw], root / "data", PreparationSettings(reading=reading)).folder
    settings = convert_run_file(
        {
            "folder": "run",
            "data": {"splits": str(splits.path)},
            "model": {"base": MODEL},
            "method": {"rank": 8},
            "training": {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-3, "trackers": []},
            "evaluation": {
                "max_rows": 48,
                "max_tokens": 16,
                "counterfactual_rows": 4,
                "require": ["accuracy - base >= 0.30", "forgetting <= 1"],
            },
            "publish": {"adapter": str(TICKETS), "promote": True, "merge": True},
        }
    )
    folder = RunFolder(root / "run")
    folder.root.mkdir()
    folder.run_file.write_text(settings.to_toml())
    begun = Run(settings, root, folder, home, Progress(disable=True))
    train(begun, plan_training(begun, splits))
    return folder


@pytest.fixture(scope="module")
def evaluation(run: RunFolder, home: Home) -> Evaluation:
    return asyncio.run(evaluate_run(Run.finished(run, home, Progress(disable=True))))


@pytest.fixture(scope="module")
def published(run: RunFolder, home: Home, evaluation: Evaluation) -> Published:
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
    return publish_run(Run.finished(run, home, Progress(disable=True)), evaluation)


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as opened:
        yield opened


def test_adapter_is_thirty_points_more_accurate_than_the_base_on_unseen_tickets(
    evaluation: Evaluation, run: RunFolder
):
    gain = evaluation.differences["base"]["accuracy"]

    assert gain.estimate >= 0.30
    assert gain.low > 0
    assert evaluation.requirements.holds
    assert evaluation.requirements.sentence in (run.evaluation / "report.html").read_text()


def test_published_version_carries_figures_reference_and_merged_model(
    published: Published, registry: Registry, home: Home, run: RunFolder
):
    manifest = inspect(home.artifacts / published.version.digest).manifest

    assert manifest.reference is not None
    assert manifest.metrics["accuracy_over_base"] >= 0.30
    assert published.merged is not None
    assert published.merged.report.saved.mean_kl < 0.005
    assert not list(run.others())  # so --overwrite would remove all of it
    folder = registry.merges.folder(TICKETS, published.version.number)
    AutoModelForCausalLM.from_pretrained(str(folder))


async def test_published_adapter_passes_the_gate_of_a_server_and_answers(
    published: Published, home: Home
):
    stored = home.artifacts / published.version.digest
    serving = Serving(MODEL, home.models, 512, "float32")
    queues = ("billing", "outage", "meter", "moving", "contract", "complaint")
    text = (
        f"Which queue: {', '.join(queues[:-1])} or {queues[-1]}?\n\nThe power is off in my street."
    )

    async with started(serving, {"tickets": stored}, 4) as models:
        [answer] = await models.ask("tickets", [[Message("user", text)]], 16)

    assert answer.is_ended
    assert answer.text in queues
