"""A process is killed at any point of a change: the registry is as before it or as after it."""

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from loragate.adapters.format.ready_file import ReadyForm
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import WriteAdapter
from support.registry import killed_changes as changes
from support.registry.killed_changes import Killer, Place
from support.registry.promotions import let_serve, make_ready

Open = Callable[[], Registry]

SUPPORT = AdapterName("acme", "support")
AT_ITS_END = sys.maxsize
Kill = Callable[..., int]
Points = Callable[[int, int], list[int]]


@pytest.fixture(params=[6, pytest.param(100, marks=pytest.mark.slow)])
def points(request: pytest.FixtureRequest) -> Points:
    """Where to kill: anywhere, and as often near the end, where the change is committed."""

    def choose(calls: int, seed: int) -> list[int]:
        chance = random.Random(seed)
        anywhere = [chance.randint(1, calls) for _ in range(request.param // 2)]
        late = [chance.randint(calls * 4 // 5, calls) for _ in range(request.param // 2 - 1)]
        return [*dict.fromkeys(anywhere + late), AT_ITS_END]

    return choose


@pytest.fixture
def open_registry(
    database_url: str, store: ArtifactStore, empty_registry: Path, write_adapter: WriteAdapter
) -> Open:
    """v1 serves as champion; v2 is loaded."""
    Path(database_url.removeprefix("sqlite:///")).write_bytes(empty_registry.read_bytes())
    with Registry(database_url, store) as registry:
        registry.tenants.create("acme")
        versions = [
            registry.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed))
            for seed in (1, 2)
        ]
        make_ready(registry, versions[1])
        let_serve(registry, SUPPORT, "champion", 1)
    return lambda: Registry(database_url, store)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as killer:
        yield killer


@pytest.fixture
def kill(killer: Killer, open_registry: Open, database_url: str, tmp_path: Path) -> Kill:
    return partial(killer.kill, Place(database_url, tmp_path / "artifacts"))


def test_killed_promotion_leaves_the_old_wish_or_the_new_one(
    open_registry: Open, kill: Kill, points: Points
):
    outcomes: set[bool] = set()
    for call in points(kill(changes.promote_the_other, AT_ITS_END), 1):
        with open_registry() as registry:
            [before] = registry.snapshot().desired_aliases()
        kill(changes.promote_the_other, call)
        with open_registry() as registry:
            [after] = registry.snapshot().desired_aliases()
            [latest] = registry.audit.list(f"{SUPPORT}@champion", limit=1)
            assert registry.snapshot().resolve("acme", "support", "champion").number == 1
        assert latest.to_version == after.desired.number
        outcomes.add(after.desired == before.desired)
    assert outcomes == {True, False}


def test_killed_swap_serves_the_old_version_or_the_new_one(
    open_registry: Open, kill: Kill, points: Points
):
    outcomes: set[bool] = set()
    with open_registry() as registry:
        registry.aliases.set(SUPPORT, "champion", 2)
    for call in points(kill(changes.serve_the_wish, AT_ITS_END), 2):
        with open_registry() as registry:
            before = registry.snapshot().resolve("acme", "support", "champion").number
            registry.aliases.set(SUPPORT, "champion", 3 - before)
        kill(changes.serve_the_wish, call)
        with open_registry() as registry:
            after = registry.snapshot().resolve("acme", "support", "champion").number
            served = [row for row in registry.audit.list() if row.action == "alias.serve"]
        assert served[0].to_version == after
        outcomes.add(after == before)
    assert outcomes == {True, False}


def test_killed_end_of_a_load_is_told_with_its_alias_and_what_that_replaced_or_not_at_all(
    open_registry: Open, kill: Kill, points: Points
):
    outcomes: set[bool] = set()

    def begin() -> tuple[AdapterVersion, AdapterVersion]:
        """The version that serves, and the other one, which is to serve and is LOADING."""
        with open_registry() as registry:
            registry.states.reset("server")
            old = registry.snapshot().resolve("acme", "support", "champion")
            new = registry.aliases.set(SUPPORT, "champion", 3 - old.number)
            make_ready(registry, old)
            registry.states.set(new, AdapterState.LOADING, "server")
            return old, new

    begin()
    for call in points(kill(changes.become_ready, AT_ITS_END), 5):
        old, new = begin()
        kill(changes.become_ready, call)
        with open_registry() as registry:
            snapshot = registry.snapshot()
        serves_new = snapshot.resolve("acme", "support", "champion") == new
        states = (snapshot.state(old), snapshot.state(new))
        assert states == (("DRAINING", "READY") if serves_new else ("READY", "LOADING"))
        outcomes.add(serves_new)
    assert outcomes == {True, False}


def test_killed_publication_leaves_a_whole_version_or_none(
    open_registry: Open,
    kill: Kill,
    points: Points,
    store: ArtifactStore,
    write_adapter: WriteAdapter,
):
    store.want_ready(ReadyForm("BF16", transposes_b=True))
    folder = write_adapter("first", seed=100)
    calls = kill(changes.publish, AT_ITS_END, folder)
    outcomes: set[bool] = set()
    for call in points(calls, 3):
        folder = write_adapter(f"at-{call}", seed=call % 2**32)
        with open_registry() as registry:
            before = [version.number for version in registry.snapshot().versions()]
        kill(changes.publish, call, folder)
        with open_registry() as registry:
            versions = list(registry.snapshot().versions())
        after = [version.number for version in versions]
        assert after in (before, [*before, before[-1] + 1])
        store.verify(versions[-1].digest)
        outcomes.add(after == before)
    assert outcomes == {True, False}
    store.sweep()
    with open_registry() as registry:
        again = registry.versions.publish(
            SUPPORT, folder
        )  # whatever was left behind is in nobody's way
        for version in registry.snapshot().versions():
            store.verify(version.digest)
        assert [*registry.snapshot().versions()][-1] == again
        registry.artifacts.collect_orphans(orphans_after_seconds=0)
        published = {version.digest for version in registry.snapshot().versions()}
    assert {*store.digests()} == published  # and nothing stays for ever
    ready = {
        path.name.removesuffix(".ready") for path in store.path(again.digest).parent.glob("*.ready")
    }
    assert again.digest in ready <= published


def test_killed_move_leaves_the_old_state_or_the_new_one(
    open_registry: Open, kill: Kill, points: Points
):
    for call in points(kill(changes.drain_v2, AT_ITS_END), 4):
        with open_registry() as registry:
            version = registry.snapshot().resolve("acme", "support", "v2")
            if registry.snapshot().state(version) is AdapterState.DRAINING:
                registry.states.set(version, AdapterState.READY, "server")
        kill(changes.drain_v2, call)
        with open_registry() as registry:
            state = registry.snapshot().state(version)
            latest = next(row for row in registry.audit.list() if row.subject == str(version))
        assert state in (AdapterState.READY, AdapterState.DRAINING)
        assert latest.to_state == state


def test_killed_collection_removes_only_what_is_retired(
    open_registry: Open,
    kill: Kill,
    points: Points,
    store: ArtifactStore,
    write_adapter: WriteAdapter,
):
    folder = write_adapter("retired", seed=9)

    def retire_one() -> str:
        with open_registry() as registry:
            return registry.states.retire(
                SUPPORT, registry.versions.publish(SUPPORT, folder).number
            ).digest

    digest = retire_one()
    for call in points(kill(changes.collect, AT_ITS_END), 5):
        retire_one()
        kill(changes.collect, call)
        with open_registry() as registry:
            for version in registry.snapshot().versions():
                store.verify(version.digest)
            assert registry.artifacts.collectable() == ((digest,) if store.has(digest) else ())
        if store.has(digest):
            store.verify(digest)
