"""Merged models beside their versions, by files alone."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from loragate.adapters.errors import (
    BaseModelError,
    InvalidAdapter,
    NotMerged,
    StoreError,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.merges import Merges
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": np.ones(2, np.float32)}, folder / "model.safetensors")
    (folder / "notes.txt").write_text("not of the model")
    return folder


@pytest.fixture
def published(registry: Registry, write_adapter) -> Registry:
    registry.tenants.create("acme")
    registry.versions.publish(SUPPORT, write_adapter())
    return registry


def test_merged_model_is_stored_with_its_own_files_only(published: Registry, merged: Path):
    record = published.merges.attach(SUPPORT, 1, merged)

    folder = published.merges.folder(SUPPORT, 1)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert record.digest == folder.name
    assert published.versions.show(SUPPORT).versions[0].artifacts == (record,)


def test_attaching_the_same_model_again_changes_nothing(published: Registry, merged: Path):
    first = published.merges.attach(SUPPORT, 1, merged)
    revision = published.revision()

    assert published.merges.attach(SUPPORT, 1, merged) == first
    assert published.revision() == revision


def test_model_that_another_version_has_too_outlives_its_replacement(
    published: Registry, merged: Path, write_adapter
):
    published.versions.publish(SUPPORT, write_adapter("second", seed=1))
    published.merges.attach(SUPPORT, 1, merged)
    published.merges.attach(SUPPORT, 2, merged)
    save_file({"w": np.zeros(2, np.float32)}, merged / "model.safetensors")

    published.merges.attach(SUPPORT, 1, merged)

    assert published.merges.folder(SUPPORT, 2).is_dir()
    assert published.merges.folder(SUPPORT, 1) != published.merges.folder(SUPPORT, 2)


def test_version_without_a_merged_model_says_how_to_make_one(published: Registry):
    with pytest.raises(NotMerged, match="loragate merge acme/support@v1"):
        published.merges.folder(SUPPORT, 1)


def test_folder_that_is_no_whole_model_is_refused(published: Registry, merged: Path):
    (merged / "model.safetensors").unlink()

    with pytest.raises(BaseModelError, match="safetensors"):
        published.merges.attach(SUPPORT, 1, merged)


def test_link_in_the_folder_is_refused(published: Registry, merged: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("{}")
    (merged / "tokenizer.json").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidAdapter, match="plain file"):
        published.merges.attach(SUPPORT, 1, merged)


def test_version_that_is_not_there_or_retired_gets_no_merged_model(
    published: Registry, merged: Path
):
    with pytest.raises(VersionNotFound):
        published.merges.attach(SUPPORT, 2, merged)
    published.states.retire(SUPPORT, 1)
    with pytest.raises(VersionRetired):
        published.merges.attach(SUPPORT, 1, merged)


def with_other_weights(folder: Path) -> Path:
    save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return folder


def test_replaced_model_is_removed_once_its_replacement_is_committed(
    published: Registry, merged: Path, store: ArtifactStore
):
    before = published.merges.attach(SUPPORT, 1, merged)

    now = published.merges.attach(SUPPORT, 1, with_other_weights(merged))

    assert not store.has(before.digest)
    store.verify(now.digest)
    assert published.artifacts.collectable(orphans_after_seconds=0) == ()


def test_commit_that_fails_leaves_the_version_the_model_that_it_has(
    published: Registry, merged: Path, store: ArtifactStore
):
    before = published.merges.attach(SUPPORT, 1, merged)

    def fail(*_: object) -> None:
        raise OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

    event.listen(Engine, "commit", fail)
    try:
        with pytest.raises(StoreError):
            published.merges.attach(SUPPORT, 1, with_other_weights(merged))
    finally:
        event.remove(Engine, "commit", fail)

    store.verify(before.digest)
    assert published.merges.folder(SUPPORT, 1) == store.path(before.digest)
    published.artifacts.collect(orphans_after_seconds=0)
    assert published.merges.folder(SUPPORT, 1) == store.path(before.digest)
    assert set(store.digests()) == {before.digest, *version_digests(published)}


def test_replaced_model_that_a_killed_process_did_not_remove_is_collected(
    published: Registry, merged: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    before = published.merges.attach(SUPPORT, 1, merged)
    with monkeypatch.context() as killed:
        killed.setattr(Merges, "_discard", lambda self, digest: None)
        published.merges.attach(SUPPORT, 1, with_other_weights(merged))
    assert store.has(before.digest)

    assert published.artifacts.collect_orphans(orphans_after_seconds=0) == (before.digest,)


def version_digests(registry: Registry) -> set[str]:
    return {version.digest for version in registry.snapshot().versions()}
