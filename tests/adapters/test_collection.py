from collections.abc import Callable
from pathlib import Path

import pytest
from promotions import make_ready

from loragate.adapters.errors import StoreError
from loragate.adapters.names import AdapterName
from loragate.adapters.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore

WriteAdapter = Callable[..., Path]

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def folder(registry: Registry, write_adapter: WriteAdapter) -> Path:
    """Published as v1, which is retired, and as v2 of acme."""
    registry.create_tenant("acme")
    folder = write_adapter("v1", seed=1)
    registry.publish(SUPPORT, folder)
    registry.retire(SUPPORT, 1)
    registry.publish(SUPPORT, folder)
    return folder


def test_artifact_that_another_version_needs_stays(
    registry: Registry, store: ArtifactStore, folder: Path
):
    assert registry.collect() == registry.collectable() == ()

    version = registry.retire(SUPPORT, 2)

    assert registry.collectable() == (version.digest,)
    assert registry.collect("ada") == (version.digest,)
    assert not store.has(version.digest)
    assert (registry.collectable(), registry.collect()) == ((), ())
    row = registry.audit(limit=1)[0]
    assert (row.action, row.actor, row.digest) == ("artifact.collect", "ada", version.digest)


@pytest.mark.parametrize("state", ["LOADING", "READY", "DRAINING"])
def test_artifact_that_an_engine_holds_stays_even_for_a_deleted_tenant(
    registry: Registry, store: ArtifactStore, folder: Path, state: str
):
    version = registry.snapshot().resolve("acme", "support", "v2")
    for step in ("LOADING", "READY", "DRAINING"):
        registry.set_state(version, AdapterState(step), "server")
        if step == state:
            break
    registry.delete_tenant("acme")
    assert registry.collect() == ()

    registry.reset_states("server")

    assert registry.collect() == (version.digest,)
    assert not store.has(version.digest)


def test_artifact_of_another_tenant_stays(registry: Registry, folder: Path):
    registry.create_tenant("globex")
    make_ready(registry, registry.publish(AdapterName("globex", "router"), folder))
    registry.retire(SUPPORT, 2)

    assert registry.collect() == ()


def test_collected_adapter_can_be_published_again(
    registry: Registry, store: ArtifactStore, folder: Path
):
    registry.retire(SUPPORT, 2)
    registry.collect()

    version = registry.publish(SUPPORT, folder)

    assert version.number == 3
    store.verify(version.digest)


def test_half_removed_artifact_is_swept_and_never_seen(
    registry: Registry, store: ArtifactStore, folder: Path, tmp_path: Path
):
    digest = registry.snapshot().resolve("acme", "support", "v2").digest
    store.path(digest).rename(tmp_path / "artifacts" / ".incoming-1-dead")

    with pytest.raises(StoreError, match="missing"):
        store.path(digest)
    assert store.sweep() == 1
    store.remove(digest)
