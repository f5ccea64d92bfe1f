import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loragate.adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    StoreError,
    TenantNotFound,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.registry import Limits, Registry
from loragate.adapters.registry.snapshot import Snapshot, SnapshotWatcher
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import WriteAdapter
from support.registry.follower import following
from support.registry.promotions import let_serve, make_ready

SUPPORT = AdapterName("acme", "support")

PROMOTE = """
import sys
from pathlib import Path
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
url, root = sys.argv[1:]
with Registry(url, ArtifactStore(Path(root))) as registry:
    registry.aliases.set_serving(AdapterName("acme", "support"), "champion", 2, "server")
"""


@pytest.fixture
def two_versions(registry: Registry, write_adapter: WriteAdapter) -> Registry:
    """The champion is v1; v2 is loaded and to follow it."""
    registry.tenants.create("acme", Limits(max_concurrent=2))
    for seed in (1, 2):
        registry.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed))
    let_serve(registry, SUPPORT, "champion", 1)
    make_ready(registry, registry.aliases.set(SUPPORT, "champion", 2))
    return registry


def let_v2_serve(registry: Registry) -> None:
    registry.aliases.set_serving(SUPPORT, "champion", 2, "server")


def test_alias_and_version_select(two_versions: Registry):
    snapshot = two_versions.snapshot()

    assert snapshot.resolve("acme", "support", "champion").number == 1
    assert snapshot.resolve("acme", "support", "v2").number == 2
    assert snapshot.limits("acme") == Limits(max_concurrent=2)
    assert snapshot.manifest(snapshot.resolve("acme", "support", "v2")).rank == 2
    assert [str(version) for version in snapshot.versions()] == [
        "acme/support@v1",
        "acme/support@v2",
    ]


def test_what_does_not_resolve_says_why(two_versions: Registry, write_adapter: WriteAdapter):
    two_versions.versions.publish(SUPPORT, write_adapter("v3", seed=3))
    retired = two_versions.states.retire(SUPPORT, 3)
    snapshot = two_versions.snapshot()

    with pytest.raises(AdapterNotFound):
        snapshot.resolve("acme", "other", "champion")
    with pytest.raises(AdapterNotFound):
        snapshot.resolve("globex", "support", "champion")
    with pytest.raises(AliasNotFound):
        snapshot.resolve("acme", "support", "challenger")
    with pytest.raises(VersionNotFound):
        snapshot.resolve("acme", "support", "v4")
    with pytest.raises(VersionRetired):
        snapshot.resolve("acme", "support", "v3")
    with pytest.raises(VersionRetired):
        snapshot.manifest(retired)
    with pytest.raises(TenantNotFound):
        snapshot.limits("globex")


def test_empty_snapshot_knows_nobody():
    snapshot = Snapshot()

    assert snapshot.tenant_of_key(hash_key("")) is None
    assert not snapshot.has_tenant("acme")
    assert snapshot.adapters("acme") == ()


def test_old_snapshot_stays_as_it_was_when_the_registry_moves_on(two_versions: Registry):
    old = two_versions.snapshot()
    let_v2_serve(two_versions)
    new = two_versions.snapshot()

    assert old.resolve("acme", "support", "champion").number == 1
    assert new.resolve("acme", "support", "champion").number == 2
    assert new.revision == old.revision + 1


def test_snapshot_shows_no_key_hash(registry: Registry):
    key = registry.tenants.create("acme").key

    assert hash_key(key) not in repr(registry.snapshot())


NAMES = st.sampled_from(["a", "b", "a-b", "support", "v1", "champion"])


@given(
    published=st.dictionaries(st.tuples(NAMES, NAMES), st.integers(1, 2), min_size=1, max_size=6)
)
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_nobody_resolves_another_tenants_adapter(
    published: dict[tuple[str, str], int], two_adapters: tuple[Path, Path], empty_registry: Path
):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_registry, folder)
        store = ArtifactStore(Path(folder) / "artifacts")
        with Registry(f"sqlite:///{folder}/registry.db", store) as registry:
            keys = {}
            for (tenant, name), count in published.items():
                if tenant not in keys:
                    keys[tenant] = registry.tenants.create(tenant).key
                for adapter in two_adapters[:count]:
                    registry.versions.publish(AdapterName(tenant, name), adapter)
                let_serve(registry, AdapterName(tenant, name), "champion", count)
            snapshot = registry.snapshot()

    names = {name for _, name in published}
    for tenant, key in keys.items():
        assert snapshot.tenant_of_key(hash_key(key)) == tenant
        assert {listing.tenant for listing in snapshot.adapters(tenant)} == {tenant}
        for name in names:
            for selector in ("champion", "v1", "v2"):
                try:
                    found = snapshot.resolve(tenant, name, selector)
                except AdapterNotFound:
                    assert (tenant, name) not in published
                except VersionNotFound:
                    assert published[tenant, name] < int(selector[1:])
                else:
                    assert (found.tenant, found.name) == (tenant, name)
    lora_ids = [version.lora_id for version in snapshot.versions()]
    assert len(set(lora_ids)) == len(lora_ids) == sum(published.values())


@pytest.fixture
def two_adapters(write_adapter: WriteAdapter) -> tuple[Path, Path]:
    return write_adapter("first", seed=1), write_adapter("second", seed=2)


async def next_champion(swaps: asyncio.Queue[Snapshot], timeout_seconds: float = 5) -> int:
    async with asyncio.timeout(timeout_seconds):
        snapshot = await swaps.get()
    return snapshot.resolve("acme", "support", "champion").number


@pytest.mark.asyncio
async def test_watcher_sees_another_processs_promotion_within_a_second(
    two_versions: Registry, database_url: str, tmp_path: Path
):
    swaps: asyncio.Queue[Snapshot] = asyncio.Queue()
    async with following(SnapshotWatcher(two_versions, [swaps.put_nowait]), 0.2):
        assert await next_champion(swaps) == 1

        command = [sys.executable, "-c", PROMOTE, database_url, str(tmp_path / "artifacts")]
        await asyncio.to_thread(subprocess.run, command, check=True)

        assert await next_champion(swaps, timeout_seconds=1) == 2


@pytest.mark.asyncio
async def test_watcher_tells_of_each_new_snapshot_once(two_versions: Registry):
    swaps: asyncio.Queue[Snapshot] = asyncio.Queue()
    async with following(SnapshotWatcher(two_versions, [swaps.put_nowait])) as watcher:
        await watcher.refresh()
        let_v2_serve(two_versions)

        assert [await next_champion(swaps), await next_champion(swaps)] == [1, 2]
        assert watcher.current.resolve("acme", "support", "champion").number == 2
    assert swaps.empty()


@dataclass
class WatchedSource:
    """A registry whose database can be taken away, or made to wait."""

    registry: Registry
    is_down: bool = False
    looks: int = 0
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def revision(self) -> int:
        self.looks += 1
        if self.is_down:
            raise StoreError("the database is away")
        revision = self.registry.revision()
        self.may_answer.wait(10)
        return revision

    def snapshot(self) -> Snapshot:
        return self.registry.snapshot()


@pytest.mark.asyncio
async def test_while_the_database_is_away_the_snapshot_stays_and_grows_old(two_versions: Registry):
    source = WatchedSource(two_versions)
    watcher = SnapshotWatcher(source)
    await watcher.refresh()
    source.is_down = True
    let_v2_serve(two_versions)
    for _ in range(2):
        before = watcher.age_seconds
        with pytest.raises(StoreError):
            await watcher.refresh()
        assert watcher.age_seconds > before
    assert watcher.current.resolve("acme", "support", "champion").number == 1

    source.is_down, before = False, watcher.age_seconds
    await watcher.refresh()
    assert watcher.current.resolve("acme", "support", "champion").number == 2
    assert watcher.age_seconds < before


@pytest.mark.asyncio
async def test_a_look_that_finds_nothing_new_makes_the_snapshot_young_again(two_versions: Registry):
    watcher = SnapshotWatcher(two_versions)
    await watcher.refresh()
    await asyncio.sleep(0.01)
    before = watcher.age_seconds
    await watcher.refresh()
    assert watcher.age_seconds < before


@pytest.mark.asyncio
async def test_those_who_ask_while_somebody_looks_share_the_next_look(two_versions: Registry):
    source = WatchedSource(two_versions)
    watcher = SnapshotWatcher(source)
    source.may_answer.clear()
    first = asyncio.create_task(watcher.refresh())
    while not source.looks:  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0.001)
    let_v2_serve(two_versions)  # after the first has looked
    others = [asyncio.create_task(watcher.refresh()) for _ in range(20)]
    await asyncio.sleep(0)
    source.may_answer.set()
    await asyncio.gather(first, *others)

    assert watcher.current.resolve("acme", "support", "champion").number == 2
    assert source.looks == 2


@pytest.mark.asyncio
async def test_a_database_put_back_to_an_older_state_is_followed(
    two_versions: Registry, database_url: str, tmp_path: Path
):
    path = Path(database_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as live, closing(sqlite3.connect(tmp_path / "old")) as old:
        live.backup(old)
        watcher = SnapshotWatcher(two_versions)
        let_v2_serve(two_versions)
        await watcher.refresh()
        assert watcher.current.resolve("acme", "support", "champion").number == 2
        old.backup(live)
    await watcher.refresh()
    assert watcher.current.resolve("acme", "support", "champion").number == 1


@pytest.mark.asyncio
async def test_whoever_waits_for_a_change_gets_the_next_snapshot(two_versions: Registry):
    watcher = SnapshotWatcher(two_versions)
    await watcher.refresh()
    seen = watcher.current
    waiting = [asyncio.create_task(watcher.change(seen)) for _ in range(3)]
    await watcher.refresh()
    assert not any(task.done() for task in waiting)
    let_v2_serve(two_versions)
    await watcher.refresh()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [watcher.current] * 3
    assert await watcher.change(seen) is watcher.current


@pytest.mark.asyncio
async def test_watcher_does_not_begin_without_a_first_snapshot(two_versions: Registry):
    with pytest.raises(StoreError):
        await SnapshotWatcher(WatchedSource(two_versions, is_down=True)).refresh()
