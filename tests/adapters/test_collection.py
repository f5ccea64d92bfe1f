import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.format.files import AdapterFiles, inspect
from loragate.adapters.format.merged_files import MergedFiles
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import WriteAdapter
from support.registry.promotions import make_ready
from support.waiting import wait_for

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def folder(registry: Registry, write_adapter: WriteAdapter) -> Path:
    """Published as v1, which is retired, and as v2 of acme."""
    registry.tenants.create("acme")
    folder = write_adapter("v1", seed=1)
    registry.versions.publish(SUPPORT, folder)
    registry.states.retire(SUPPORT, 1)
    registry.versions.publish(SUPPORT, folder)
    return folder


def test_artifact_that_another_version_needs_stays(
    registry: Registry, store: ArtifactStore, folder: Path
):
    assert registry.artifacts.collect() == registry.artifacts.collectable() == ()

    version = registry.states.retire(SUPPORT, 2)

    assert registry.artifacts.collectable() == (version.digest,)
    assert registry.artifacts.collect("ada") == (version.digest,)
    assert not store.has(version.digest)
    assert (registry.artifacts.collectable(), registry.artifacts.collect()) == ((), ())
    row = registry.audit.list(limit=1)[0]
    assert (row.action, row.actor, row.digest) == ("artifact.collect", "ada", version.digest)


@pytest.mark.parametrize("state", ["LOADING", "READY", "DRAINING"])
def test_artifact_that_an_engine_holds_stays_even_for_a_deleted_tenant(
    registry: Registry, store: ArtifactStore, folder: Path, state: str
):
    version = registry.snapshot().resolve("acme", "support", "v2")
    for step in ("LOADING", "READY", "DRAINING"):
        registry.states.set(version, AdapterState(step), "server")
        if step == state:
            break
    registry.tenants.delete("acme")
    assert registry.artifacts.collect() == ()

    registry.states.reset("server")

    assert registry.artifacts.collect() == (version.digest,)
    assert not store.has(version.digest)


def test_artifact_of_another_tenant_stays(registry: Registry, folder: Path):
    registry.tenants.create("globex")
    make_ready(registry, registry.versions.publish(AdapterName("globex", "router"), folder))
    registry.states.retire(SUPPORT, 2)

    assert registry.artifacts.collect() == ()


def test_collected_adapter_can_be_published_again(
    registry: Registry, store: ArtifactStore, folder: Path
):
    registry.states.retire(SUPPORT, 2)
    registry.artifacts.collect()

    version = registry.versions.publish(SUPPORT, folder)

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


DIES_BEFORE_ITS_COMMIT = """
import os, signal, sys
from pathlib import Path
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
class DyingStore(ArtifactStore):
    def put(self, files):
        print(super().put(files), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
url, root, folder = sys.argv[1:]
Registry(url, DyingStore(Path(root))).versions.publish(AdapterName("acme", "support"), Path(folder))
"""
LONG_AGO = 1_000_000_000.0  # seconds since 1970
DAY = 86_400.0


class InterruptedStore(ArtifactStore):
    """Does something else between the store and the registry's commit of each publication."""

    def __init__(self, root: Path, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self.meanwhile = meanwhile

    def put(self, files: AdapterFiles | MergedFiles) -> str:
        digest = super().put(files)
        self.meanwhile()
        return digest


def make_old(store: ArtifactStore, digest: str) -> str:
    os.utime(store.path(digest), (LONG_AGO, LONG_AGO))
    return digest


@pytest.fixture
def orphan(registry: Registry, store: ArtifactStore, write_adapter: WriteAdapter) -> Path:
    """An adapter's folder whose copy is in the store for long, and in no version."""
    registry.tenants.create("acme")
    folder = write_adapter()
    make_old(store, store.put(inspect(folder)))
    return folder


def test_what_a_publication_killed_before_its_commit_left_goes_once_it_is_old(
    registry: Registry,
    store: ArtifactStore,
    database_url: str,
    write_adapter: WriteAdapter,
    tmp_path: Path,
):
    registry.tenants.create("acme")
    publish = [sys.executable, "-c", DIES_BEFORE_ITS_COMMIT]
    killed = subprocess.run(
        [*publish, database_url, tmp_path / "artifacts", write_adapter()],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    digest = killed.stdout.strip()
    assert (
        registry.artifacts.collect() == registry.artifacts.collect_orphans() == ()
    )  # it could be under way
    make_old(store, digest)

    assert registry.artifacts.collectable() == (digest,)
    assert registry.artifacts.collectable(orphans_after_seconds=10**12) == ()
    assert registry.artifacts.collect_orphans("ada") == (digest,)

    assert list((tmp_path / "artifacts").iterdir()) == []
    row = registry.audit.list(limit=1)[0]
    assert (row.action, row.actor, row.digest) == ("artifact.collect", "ada", digest)
    assert registry.artifacts.collectable() == ()


def test_publication_that_finds_an_old_orphan_keeps_it_from_a_collection_at_the_same_time(
    registry: Registry, store: ArtifactStore, database_url: str, orphan: Path, tmp_path: Path
):
    found: list[tuple[str, ...]] = []
    interrupted = InterruptedStore(
        tmp_path / "artifacts", lambda: found.append(registry.artifacts.collect(unreferenced=True))
    )

    with Registry(database_url, interrupted) as publishing:
        version = publishing.versions.publish(SUPPORT, orphan)

    assert found == [()]
    store.verify(version.digest)
    make_old(store, version.digest)
    assert registry.artifacts.collectable(unreferenced=True) == registry.artifacts.collect() == ()


def test_publication_that_takes_longer_than_an_orphans_time_fails_whole(
    registry: Registry, database_url: str, orphan: Path, tmp_path: Path
):
    interrupted = InterruptedStore(
        tmp_path / "artifacts", lambda: registry.artifacts.collect(orphans_after_seconds=0)
    )

    with (
        Registry(database_url, interrupted) as publishing,
        pytest.raises(StoreError, match="publish its folder again"),
    ):
        publishing.versions.publish(SUPPORT, orphan)

    assert list(registry.snapshot().versions()) == []
    assert registry.versions.publish(SUPPORT, orphan).number == 1


def test_orphan_that_is_put_again_while_its_removal_waits_for_the_lock_stays(
    store: ArtifactStore, orphan: Path, tmp_path: Path
):
    [digest] = store.digests()
    root = os.open(tmp_path / "artifacts", os.O_RDONLY)
    fcntl.flock(root, fcntl.LOCK_SH)  # as a `put` that has come to the end of its copy

    with ThreadPoolExecutor(1) as thread:
        removing = thread.submit(store.remove_orphan, digest, DAY)
        waits = f"-> FLOCK  ADVISORY  WRITE {os.getpid()} "
        assert wait_for(lambda: waits in Path("/proc/locks").read_text(), 10)
        os.utime(store.path(digest))
        os.close(root)

        assert removing.result(10) is False
    store.verify(digest)


def test_every_collection_among_many_publications_leaves_what_they_recorded(
    registry: Registry, store: ArtifactStore, database_url: str, write_adapter: WriteAdapter
):
    registry.tenants.create("acme")
    folders = [write_adapter(f"of-{seed}", seed=seed) for seed in range(8)]
    for folder in folders:
        make_old(store, store.put(inspect(folder)))
    is_over = Event()

    def collect() -> None:
        with Registry(database_url, store) as collecting:
            while not is_over.is_set():
                collecting.artifacts.collect(unreferenced=True)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(collect)
        for number, folder in enumerate(folders):
            registry.versions.publish(AdapterName("acme", f"adapter-{number}"), folder)
        is_over.set()
        running.result(30)

    versions = list(registry.snapshot().versions())
    assert len(versions) == len(folders)
    for version in versions:
        store.verify(version.digest)


def test_files_of_another_registry_are_taken_only_where_that_is_said(
    registry: Registry, store: ArtifactStore, empty_registry: Path, folder: Path, tmp_path: Path
):
    shutil.copy(empty_registry, tmp_path / "another.db")
    digest = make_old(store, registry.snapshot().resolve("acme", "support", "v2").digest)

    with Registry(f"sqlite:///{tmp_path / 'another.db'}", store) as another:
        assert (
            another.artifacts.collectable()
            == another.artifacts.collect()
            == another.artifacts.collect_orphans()
            == ()
        )
        assert store.has(digest)
        assert another.artifacts.collectable(unreferenced=True) == (digest,)
        assert another.artifacts.collect(unreferenced=True) == (digest,)


def test_version_whose_publication_was_killed_right_after_its_commit_is_no_orphan(
    registry: Registry, store: ArtifactStore, folder: Path
):
    digest = registry.snapshot().resolve("acme", "support", "v2").digest
    store.unsettle(make_old(store, digest))

    assert registry.artifacts.collectable() == registry.artifacts.collect_orphans() == ()

    assert store.unsettled() == []
    store.verify(digest)


def test_files_of_retired_versions_are_left_to_an_operator(
    registry: Registry, store: ArtifactStore, folder: Path
):
    make_old(store, registry.states.retire(SUPPORT, 2).digest)

    assert registry.artifacts.collect_orphans() == ()
    assert len(registry.artifacts.collectable()) == 1
