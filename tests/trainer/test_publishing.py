"""A run's way into the registry: what is written about it, and what keeps it out."""

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.files import inspect
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.store import ArtifactStore
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.publishing.publishing import PublishRefused, assemble, publish
from loragate.trainer.publishing.reference import compute_reference, write_reference
from loragate.trainer.run.file import convert_run_file
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.settings import EvaluationSettings
from support.training.evaluations import evaluation_of
from support.training.finished_runs import examples, write_run

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def run(tmp_path: Path, base) -> RunFolder:
    toml = """
[publish]
adapter = "acme/support"
max_tokens_cap = 32
stop = ["###"]
sampling = { temperature = 0.0 }
license = "apache-2.0"
description = "Sorts tickets."
"""
    return write_run(tmp_path, base, toml)


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path, base) -> Iterator[Registry]:
    publish_check = PublishCheck(BaseProfile.read(base), 64)
    store = ArtifactStore(tmp_path / "artifacts")
    path = shutil.copy(empty_registry, tmp_path)
    with Registry(f"sqlite:///{path}", store, publish_check) as opened:
        opened.tenants.create("acme")
        yield opened


async def evaluation(base, adapter: Path, require: str) -> Evaluation:
    settings = EvaluationSettings(counterfactual_rows=0, resamples=100, require=(require,))
    return await evaluation_of(base, adapter, examples(), lambda _m, _q: "outage", settings)


def test_published_run_passes_the_gate_and_carries_its_lineage(
    run: RunFolder, registry: Registry, tmp_path: Path
):
    folder = assemble(run, tmp_path / "out")

    version = publish(registry, folder, run.resolved(), None)

    record = registry.versions.show(SUPPORT).versions[0]
    assert record.version == version
    manifest, result = record.manifest, run.result()
    assert manifest.base_model_digest == result.base_model_digest
    assert manifest.lineage["data_digest"] == result.data_digest
    assert manifest.lineage["seed"] == 7
    assert manifest.lineage["package.torch"] == "2.13.0"
    assert 'adapter = "acme/support"' in str(manifest.lineage["run_toml"])
    assert manifest.metrics["validation_loss"] == 0.5


def test_lineage_says_no_path_and_no_price(base, tmp_path: Path):
    toml = """
[cost]
machine_per_hour = 12.34
[evaluation]
general_text = "/srv/secret/general.txt"
"""
    run = write_run(tmp_path, base, toml)

    lineage = inspect(assemble(run, tmp_path / "out")).manifest.lineage

    for written in (str(lineage["run_toml"]), str(lineage["resolved_toml"])):
        assert "12.34" not in written
        assert "/" not in written
        assert convert_run_file(tomllib.loads(written)).evaluation.general_text == "general.txt"


def test_contract_is_what_the_run_says(run: RunFolder, tmp_path: Path):
    contract = inspect(assemble(run, tmp_path / "out")).manifest.contract

    assert contract.max_tokens_cap == 32
    assert contract.stop == ("###",)
    assert contract.sampling_defaults == {"temperature": 0.0}
    assert contract.system_prompt is None


def test_system_prompt_of_the_data_becomes_part_of_the_contract(base, tmp_path: Path):
    run = write_run(tmp_path, base)
    text = run.resolved_file.read_text().replace('system_prompt = ""', 'system_prompt = "Be kind."')
    run.resolved_file.write_text(text)

    assert inspect(assemble(run, tmp_path / "out")).manifest.contract.system_prompt == "Be kind."


async def test_figures_of_the_evaluation_go_into_manifest_and_card(
    run: RunFolder, base, tmp_path: Path
):
    found = await evaluation(base, run.adapter, "accuracy >= 0.3")

    folder = assemble(run, tmp_path / "out", found)

    manifest = inspect(folder).manifest
    assert manifest.metrics["accuracy"] == pytest.approx(1 / 3)
    assert manifest.metrics["accuracy_over_base"] == 0.0
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["base_model"]) == ("peft", "tiny")
    assert data["license"] == "apache-2.0"
    [model] = data["model-index"]
    metrics = {each["type"] for result in model["results"] for each in result["metrics"]}
    assert metrics >= {"accuracy", "loss"}
    assert "Sorts tickets." in card.text
    assert "| Accuracy | 33.3 %" in card.text


async def test_run_that_does_not_hold_its_requirements_is_not_published(
    run: RunFolder, registry: Registry, base, tmp_path: Path
):
    found = await evaluation(base, run.adapter, "accuracy >= 0.9")
    folder = assemble(run, tmp_path / "out", found)

    with pytest.raises(PublishRefused, match=r"accuracy >= 0\.9"):
        publish(registry, folder, run.resolved(), found)

    assert registry.adapters("acme") == []


def test_reference_goes_with_the_weights(run: RunFolder, registry: Registry, base, tmp_path: Path):
    folder = assemble(run, tmp_path / "out")
    renderer = Renderer.load(base.path)
    prompts = [renderer.supervise(row.turns())[-1].input_ids for row in examples()]

    write_reference(folder, compute_reference(base.path, folder, prompts))
    version = publish(registry, folder, run.resolved(), None)

    stored = inspect(tmp_path / "artifacts" / version.digest).manifest
    assert stored.reference is not None
    assert stored.reference.effect > 0.2
    assert stored.lineage["seed"] == 7


def test_run_is_promoted_only_where_it_asks_for_that(base, registry: Registry, tmp_path: Path):
    for name, promote in (("one", "false"), ("two", "true")):
        toml = f'[publish]\nadapter = "acme/{name}"\npromote = {promote}'
        (tmp_path / name).mkdir()
        run = write_run(tmp_path / name, base, toml)
        publish(registry, assemble(run, tmp_path / name / "out"), run.resolved(), None)

    aliases = {each.name: set(each.aliases) for each in registry.adapters("acme")}
    assert aliases == {"one": set(), "two": {"champion"}}


def test_run_without_a_name_to_publish_by_is_refused(base, registry: Registry, tmp_path: Path):
    run = write_run(tmp_path, base)

    with pytest.raises(PublishRefused, match="names no adapter"):
        publish(registry, assemble(run, tmp_path / "out"), run.resolved(), None)


def test_full_training_has_no_adapter_to_publish(base, tmp_path: Path):
    run = write_run(tmp_path, base, method="full")

    with pytest.raises(PublishRefused, match="loragate serve --model"):
        assemble(run, tmp_path / "out")


def test_run_whose_weights_are_broken_is_stopped_by_the_gate(
    run: RunFolder, registry: Registry, tmp_path: Path
):
    weights = run.adapter / "adapter_model.safetensors"
    tensors = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    folder = assemble(run, tmp_path / "out")

    with pytest.raises(InvalidAdapter):
        publish(registry, folder, run.resolved(), None)

    assert json.loads((folder / "manifest.json").read_text())["lineage"]["seed"] == 7
