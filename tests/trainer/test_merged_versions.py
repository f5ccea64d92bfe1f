"""Merged models as artifacts of versions."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.trainer.publishing.merged_versions import merge_version
from loragate.trainer.publishing.merging import MergeRefused
from loragate.trainer.publishing.publishing import assemble
from loragate.trainer.registry import find_version
from support.training.finished_runs import examples, write_adapter, write_run

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def home(tmp_path: Path, empty_registry: Path) -> Home:
    home = Home(tmp_path / "home").ensure()
    shutil.copy(empty_registry, home.root)
    return home


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as opened:
        opened.tenants.create("acme")
        yield opened


@pytest.fixture
def version(registry: Registry, adapter: Path) -> AdapterVersion:
    return registry.versions.publish(SUPPORT, adapter)


def test_merged_model_belongs_to_its_version_and_loads_alone(
    registry: Registry, version: AdapterVersion, base, home: Home
):
    merged = merge_version(registry, version, base, home, rows=examples())

    folder = registry.merges.folder(SUPPORT, version.number)
    assert folder == merged.folder
    AutoModelForCausalLM.from_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(folder))
    [artifact] = registry.versions.show(SUPPORT).versions[0].artifacts
    assert (artifact.kind, artifact.digest) == ("merged", merged.artifact.digest)
    assert registry.audit.list("acme")[0].action == "version.merge"
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers"
    assert "mean KL divergence" in card.text


def test_merged_model_alone_is_rendered_as_the_server_renders_it(
    registry: Registry,
    version: AdapterVersion,
    base,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    template = "Be kind." + (AutoTokenizer.from_pretrained(str(base.path)).chat_template or "")
    (tmp_path / "server.jinja").write_text(template)
    monkeypatch.setenv("LORAGATE_ENGINE_CHAT_TEMPLATE", str(tmp_path / "server.jinja"))

    merged = merge_version(registry, version, base, home)

    assert AutoTokenizer.from_pretrained(str(merged.folder)).chat_template == template


def test_copy_is_left_where_it_was_asked_for(
    registry: Registry, version: AdapterVersion, base, home: Home, tmp_path: Path
):
    merged = merge_version(registry, version, base, home, out=tmp_path / "out")

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {path.name for path in merged.folder.iterdir()}
    assert not list(home.root.glob(".merge-*"))


def test_merging_again_in_another_dtype_replaces_the_files(
    registry: Registry, version: AdapterVersion, base, home: Home
):
    first = merge_version(registry, version, base, home, dtype="bfloat16")
    again = merge_version(registry, version, base, home, dtype="float32")

    assert not first.folder.exists()
    assert again.folder.is_dir()
    assert len(registry.versions.show(SUPPORT).versions[0].artifacts) == 1


def test_files_of_a_retired_version_go_with_its_merged_model(
    registry: Registry, version: AdapterVersion, base, home: Home
):
    merged = merge_version(registry, version, base, home)
    assert registry.artifacts.collectable() == ()

    registry.states.retire(SUPPORT, version.number)

    assert set(registry.artifacts.collect()) == {version.digest, merged.artifact.digest}
    assert not merged.folder.exists()


def test_version_of_another_base_model_is_refused(base, home: Home, registry: Registry, tmp_path):
    run = write_run(tmp_path, base)
    version = registry.versions.publish(SUPPORT, assemble(run, tmp_path / "out"))
    other = replace(base, digest="sha256:" + "c" * 64)

    with pytest.raises(MergeRefused, match="another base model"):
        merge_version(registry, version, other, home)


def test_qlora_version_is_known_by_its_lineage_and_measured_on_both_bases(
    base, home: Home, registry: Registry, tmp_path: Path
):
    run = write_run(tmp_path, base, '[method]\nname = "qlora"', method="qlora")
    version = registry.versions.publish(SUPPORT, assemble(run, tmp_path / "out"))

    merged = merge_version(registry, version, base, home)

    assert merged.report.quantized is not None
    written = json.loads((merged.folder / "merge.json").read_text())
    assert written["quantized"]["closer"] == "dequantised"


def test_version_is_found_by_number_by_alias_and_by_plain_name(
    registry: Registry, version: AdapterVersion, tmp_path: Path
):
    second = registry.versions.publish(SUPPORT, write_adapter(tmp_path / "second", seed=2))
    registry.aliases.set(SUPPORT, "champion", version.number)
    registry.aliases.set(SUPPORT, "challenger", second.number)

    found = [
        find_version(registry, text)
        for text in ("acme/support", "acme/support@v2", "acme/support@challenger")
    ]

    assert found == [version, second, second]
