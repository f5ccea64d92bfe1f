"""`loragate evaluate` and `loragate merge`, as a user types them."""

import csv
import json
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from rich.progress import Progress
from typer.testing import CliRunner, Result

from loragate.adapters.base_models.preparation import find, prepare
from loragate.adapters.errors import AdapterNotFound, TenantNotFound
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.trainer.cli import evaluate as cli_evaluate
from loragate.trainer.cli import merge as cli_merge
from loragate.trainer.data.seen import SeenRows
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.rubric import write_sheet
from loragate.trainer.evaluation.served import ServedModels, Serving
from loragate.trainer.pipeline import evaluating
from loragate.trainer.publishing.merging import MergeRefused
from loragate.trainer.publishing.publishing import publish_run
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from loragate.trainer.settings import EvaluationSettings
from support.training.evaluations import evaluation_of, transport
from support.training.examples import write_jsonl
from support.training.finished_runs import examples, write_adapter, write_run
from support.training.judge_server import Reply, judge_server, said

Ask = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base) -> Home:
    monkeypatch.setenv("LORAGATE_HOME", str(tmp_path / "home"))
    home = Home.from_environment().ensure()
    with Progress(disable=True) as progress:
        prepare(str(base.path), home.models, progress)
    return home


@pytest.fixture
def ask() -> Ask:
    app = typer.Typer()
    cli_evaluate.add_to(app)
    cli_merge.add_to(app)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
async def run(base, tmp_path: Path) -> RunFolder:
    """A run that was evaluated, and does not hold what it required."""
    run = write_run(tmp_path, base)
    settings = EvaluationSettings(
        counterfactual_rows=0, samples=3, resamples=100, require=("accuracy >= 0.9",)
    )
    found = await evaluation_of(
        base, run.adapter, examples(), lambda model, _question: f"{model} says", settings
    )
    found.write(run.evaluation)
    return run


def test_ratings_go_into_the_report_without_asking_again(run: RunFolder, ask: Ask, tmp_path: Path):
    refused = ask("evaluate", run.root, "--ratings", tmp_path / "none.csv")
    assert "none.csv cannot be read" in str(refused.exception)
    (run.evaluation / "report.html").unlink(missing_ok=True)
    sheet = _filled_sheet(run, tmp_path / "ann.csv")

    result = ask("evaluate", run.root, "--ratings", sheet, "--json")

    assert result.exit_code == 1  # the requirement still does not hold
    assert json.loads(result.stdout)["holds"] is False
    assert "What people say" in (run.evaluation / "report.html").read_text()


def test_sheet_for_raters_is_of_the_evaluation_that_is_there(run: RunFolder, ask: Ask):
    before = (run.evaluation / "evaluation.json").read_bytes()

    result = ask("evaluate", run.root, "--rubric", "--json")  # a server would take minutes

    assert result.exit_code == 1
    assert json.loads(result.stdout)["rubric"].endswith("rubric.csv")
    assert (run.evaluation / "rubric.csv").is_file()
    assert (run.evaluation / "evaluation.json").read_bytes() == before


def test_judges_are_asked_about_the_answers_that_are_there(
    base, home: Home, run: RunFolder, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def judge(body: dict[str, Any]) -> Reply:
        asked = json.loads(body["messages"][-1]["content"])
        if "first" in asked:
            return said({"better": "first" if asked["first"].startswith("new") else "second"})
        return said({"tone": 5 if asked["answer"].startswith("new") else 2})

    none = ask("evaluate", run.root, "--judge")
    assert "the run names no judge" in str(none.exception)
    with judge_server(judge) as server:
        file = tmp_path / "run.toml"
        file.write_text(
            f'{run.run_file.read_text()}[evaluation]\nrequire = ["gpt_tone - base >= 2"]\n'
            f'[evaluation.judges.gpt]\nurl = "{server.url}"\nmodel = "m"\ncriteria = ["tone"]\n'
            'key_variable = "JUDGE_KEY"\n'
        )
        keyless = ask("evaluate", file, "--judge")
        assert "there is no JUDGE_KEY in the environment" in str(keyless.exception)
        monkeypatch.setenv("JUDGE_KEY", "sk-of-a-test")

        result = ask("evaluate", file, "--judge")
        calls = len(server.asked)
        again = ask("evaluate", file, "--judge", "--json")

    assert result.exit_code == 0, (result.output, result.exception)
    assert "Tone, by gpt" in result.stdout
    assert "Not compared with people" in result.stdout
    assert json.loads(again.stdout)["metrics"]["gpt_tone"] == 5
    assert len(server.asked) == calls > 0
    assert not list(run.others())
    kept = b"".join(path.read_bytes() for path in run.root.rglob("*") if path.is_file())
    assert b"sk-of-a-test" not in kept


async def test_run_is_held_against_contenders_and_against_first_version_and_champion(
    base, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = find(str(base.path), home.models)
    settings = (
        'chat_template_kwargs = {}\n[training]\ndevice = "cpu"\n'
        f'[evaluation]\ntests = ["{tmp_path / "old.jsonl"}"]\n'
        '[publish]\nadapter = "acme/support"\npromote = true\nreference_prompts = 0'
    )
    asks = [{"prompt": f"my bill number {n} is wrong", "completion": "billing"} for n in (4, 5)]
    write_jsonl(tmp_path / "old.jsonl", asks)
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
    for seed in (1, 2):
        (root := tmp_path / f"{seed}").mkdir()
        run = write_run(root, own, settings, base_model_digest=own.digest)
        write_adapter(run.adapter, seed=seed)
        finished = Run.finished(run, home, Progress(disable=True))
        version = publish_run(finished, None).version
    store = ArtifactStore(home.artifacts)
    SeenRows.of(examples()[9:10]).write(store.path(version.digest))
    asked: list[Serving] = []

    @asynccontextmanager
    async def canned(serving: Serving, _adapters: object, _concurrency: int):
        asked.append(serving)
        answers = transport(lambda _model, _question: "outage")
        async with httpx.AsyncClient(transport=answers, base_url="http://tiny") as client:
            yield ServedModels(client, 4)

    monkeypatch.setattr(evaluating, "started", canned)

    found = await evaluating.evaluate_run(finished)

    assert [(each.name, each.title) for each in found.systems if each.name != "new"] == [
        ("base", own.name),
        ("examples", "base, 4 examples in the prompt"),
        ("retrieval", "base, 4 rows retrieved"),
        ("first", "acme/support@v1"),
        ("champion", "acme/support@v2"),
        ("tfidf", "TF-IDF, logistic regression"),
    ]
    assert found.about.left_out == (
        "1 test row was left out, since something was trained on that: acme/support@v2 on 1."
    )
    assert [(each.name, each.rows) for each in found.sets if each.name != "far"] == [("old", 2)]
    assert (found.about.rows, found.about.test_rows) == (2, 2)
    assert asked[0].max_model_len <= 256 + 128  # what the model reads
    assert "Which way?" in (run.evaluation / "report.html").read_text()
    assert found.requirements.holds is False  # it says "outage" to everything


def test_remote_server_needs_the_name_of_the_new_model(run: RunFolder, ask: Ask):
    assert ask("evaluate", run.root, "--url", "http://127.0.0.1:1").exit_code == 2


def test_published_run_is_merged_by_its_name(base, home: Home, ask: Ask, tmp_path: Path):
    own = find(str(base.path), home.models)
    run = write_run(
        tmp_path,
        own,
        '[publish]\nadapter = "acme/support"\npromote = true',
        base_model_digest=own.digest,
    )
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
    publish_run(Run.finished(run, home, Progress(disable=True)), None)

    result = ask("merge", "acme/support", "--base", base.path, "--out", tmp_path / "out", "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["version"] == "acme/support@v1"
    assert told["report"]["merged"]["largest_logit_difference"] < 1e-4
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        [artifact] = registry.versions.show(AdapterName("acme", "support")).versions[0].artifacts
    assert artifact.digest == told["digest"]
    again = ask("merge", "acme/support@v1", "--base", base.path, "--out", tmp_path / "out")
    assert isinstance(again.exception, MergeRefused)


@pytest.mark.parametrize("arguments", [["acme/nothing"], ["nobody/support", "--serve"]])
def test_version_that_is_not_there_is_told_before_anything_is_loaded(
    home: Home, ask: Ask, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
    for heavy in ("cli.progress", "publishing.merged_versions", "publishing.merging"):
        monkeypatch.setitem(sys.modules, f"loragate.trainer.{heavy}", None)  # importing it fails

    assert isinstance(ask("merge", *arguments).exception, AdapterNotFound | TenantNotFound)


def _filled_sheet(run: RunFolder, path: Path) -> Path:
    write_sheet(Evaluation.read(run.evaluation), path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row | {"accuracy": "4"} for row in csv.DictReader(file)]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path
