"""Going on from a published version, with old rows in the mix."""

import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest
from safetensors.torch import load_file

from loragate.adapters.format.files import MANIFEST, inspect
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.trainer.data.example import DataError, write_examples
from loragate.trainer.data.splits import SplitFolder, write_split_folder
from loragate.trainer.errors import RunFileError
from loragate.trainer.pipeline.test_sets import sources_of
from loragate.trainer.registry import open_registry
from loragate.trainer.run.folder import RunFolder
from support.training.tiny_runs import TinyRuns, examples, write_splits


@pytest.fixture
def published(runs: TinyRuns) -> RunFolder:
    """The first run's adapter is acme/sorter@v1, in a registry of this test's own."""
    home = Home(runs.root / "registry").ensure()
    home.models.rmdir()
    home.models.symlink_to(runs.home.models)
    runs.home = home
    folder, _ = runs.train(
        runs.run_file(training={"max_steps": 12, "learning_rate": 1e-2}), "first"
    )
    with open_registry(home) as registry:
        registry.tenants.create("acme")
        registry.versions.publish(AdapterName("acme", "sorter"), folder.adapter)
    return folder


@pytest.mark.filterwarnings("error:Could not find a config file")
def test_training_goes_on_from_a_published_version(runs: TinyRuns, published: RunFolder) -> None:
    run = runs.run_file(
        model={"continue_from": "acme/sorter@v1"},
        method={"rank": "auto"},
        training={"max_steps": 4},
    )
    folder, result = runs.train(run, "second")
    first = published.result().diagnosis
    assert result.continued_from == "acme/sorter@v1"
    assert result.diagnosis.first_validation_loss == pytest.approx(
        first.best_validation_loss, rel=1e-4
    )
    before = load_file(published.adapter / "adapter_model.safetensors")
    after = load_file(folder.adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"rank": 64}, "rank is 64, but acme/sorter@v1, .* has 8"),
        ({"rank": "auto", "name": "rslora"}, "no rslora adapter"),
        ({"rank": "auto", "target_modules": ["q_proj"]}, "target_modules"),
    ],
)
def test_a_shape_that_the_version_does_not_have_is_refused(
    runs: TinyRuns, published: RunFolder, method: dict[str, object], message: str
) -> None:
    run = runs.run_file(model={"continue_from": "acme/sorter@v1"}, method=method)
    with pytest.raises(RunFileError, match=message):
        runs.plan(run)


def test_old_rows_are_mixed_in_by_their_share(runs: TinyRuns) -> None:
    write_splits(runs.root / "old", train_rows=80, seed=7)
    plan = runs.plan(runs.run_file(data={"replay": "old", "replay_share": 0.25}))
    assert plan.replayed == 16
    assert len(plan.training.rows) == 48 + 16
    again = runs.plan(runs.run_file(data={"replay": "old", "replay_share": 0.25}))
    assert again.training == plan.training


def test_of_few_old_rows_all_are_mixed_in(runs: TinyRuns) -> None:
    write_splits(runs.root / "old", train_rows=4, seed=7)
    plan = runs.plan(runs.run_file(data={"replay": "old", "replay_share": 0.5}))
    assert 0 < plan.replayed <= 4  # those that are like a row of validation or test stay out


def test_old_rows_that_are_tested_now_are_not_replayed(runs: TinyRuns) -> None:
    new = SplitFolder.read(runs.root / "splits")
    test = new.splits["test"]
    write_split_folder(
        runs.root / "old",
        {"train": test, "validation": test[:1], "test": test[:1]},
        {},
    )
    plan = runs.plan(runs.run_file(data={"replay": "old", "replay_share": 0.25}))
    assert plan.replayed == 0


def test_a_replay_folder_that_is_none_is_named(runs: TinyRuns, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of splits"):
        runs.plan(runs.run_file(data={"replay": "nowhere"}))


def test_the_test_set_that_an_earlier_version_kept_is_measured_too(
    runs: TinyRuns, published: RunFolder
) -> None:
    kept = runs.home.root / "test_sets" / "plants.jsonl"
    kept.parent.mkdir()
    write_examples(kept, examples(4, seed=9))
    lineages = ({"run_toml": '[data]\ntest_set = "plants"\n'}, {"continued_from": "acme/sorter@v2"})
    with open_registry(runs.home) as registry:
        for lineage in lineages:  # v3 goes on from v2, which kept its test set
            manifest = inspect(published.adapter).manifest
            told = dataclasses.replace(manifest, lineage=MappingProxyType(lineage))
            (published.adapter / MANIFEST).write_text(told.to_json())
            registry.versions.publish(AdapterName("acme", "sorter"), published.adapter)

    sources = {
        version: sources_of(
            runs.run(runs.run_file(model={"continue_from": f"acme/sorter@{version}"}))
        )
        for version in ("v1", "v2", "v3")
    }
    own = runs.run(
        runs.run_file(
            data={"splits": "", "raw": ["raw.csv"], "test_set": "plants"},
            model={"continue_from": "acme/sorter@v3"},
        )
    )

    assert {version: [each.name for each in found] for version, found in sources.items()} == {
        "v1": [],
        "v2": ["plants"],
        "v3": ["plants"],
    }
    assert len(sources["v3"][0].rows()) == 4
    assert sources_of(own) == ()  # which are its test split
