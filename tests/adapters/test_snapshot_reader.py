"""Snapshots are renewed from what has changed: they are the same as if read whole, and cost the
same however much there is.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Engine, event

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.registry import AdapterState, Limits, Registry
from loragate.adapters.registry.snapshot import Snapshot
from loragate.adapters.registry.snapshot_reader import read_snapshot
from loragate.adapters.registry.states import LEGAL_MOVES
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import WriteAdapter
from support.registry.many_versions import fill
from support.registry.promotions import make_ready

Trace = Callable[[FrameType, str, Any], Any]

SUPPORT = AdapterName("acme", "support")


@dataclass
class Work:
    """What SQLite has done: rows handed out, and steps of its virtual machine."""

    rows: int = 0
    steps: int = 0

    def row(self, _cursor: object, row: tuple[object, ...]) -> tuple[object, ...]:
        self.rows += 1
        return row

    def step(self) -> int:
        self.steps += 1
        return 0

    def count(self, act: Callable[[], object]) -> tuple[int, int]:
        self.rows = self.steps = 0
        act()
        return self.rows, self.steps


@contextmanager
def counted() -> Iterator[Work]:
    """Counts for connections that are opened within the block."""
    work = Work()

    def observe(connection: SqliteConnection, _record: object) -> None:
        connection.row_factory = work.row
        connection.set_progress_handler(work.step, 1)

    event.listen(Engine, "connect", observe)
    try:
        yield work
    finally:
        event.remove(Engine, "connect", observe)


def costs_of_a_promotion(root: Path, tenants: int, folders: list[Path]) -> list[tuple[int, int]]:
    """Of publishing, of promoting, of letting serve, and of the snapshots after each."""
    root.mkdir()
    url, store = f"sqlite:///{root / 'registry.db'}", ArtifactStore(root / "artifacts")
    fill(url, store, folders[0], tenants, each=5)
    with counted() as work, Registry(url, store) as registry:
        registry.snapshot()
        costs = [work.count(lambda: registry.versions.publish(SUPPORT, folders[1]))]
        costs.append(work.count(registry.snapshot))
        version = registry.aliases.set(SUPPORT, "champion", 2)
        costs.append(work.count(lambda: make_ready(registry, version)))
        costs.append(work.count(registry.snapshot))
        costs.append(
            work.count(lambda: registry.aliases.set_serving(SUPPORT, "champion", 2, "server"))
        )
        costs.append(work.count(registry.snapshot))
        costs.append(work.count(registry.revision))
        assert registry.snapshot().resolve("acme", "support", "champion") == version
    return costs


def test_a_change_costs_the_same_however_many_versions_there_are(
    tmp_path: Path, write_adapter: WriteAdapter
):
    folders = [write_adapter(f"v{seed}", seed=seed) for seed in (1, 2)]

    few = costs_of_a_promotion(tmp_path / "few", 4, folders)
    many = costs_of_a_promotion(tmp_path / "many", 400, folders)

    assert [rows for rows, _ in many] == [rows for rows, _ in few]
    for (_, steps_of_few), (_, steps_of_many) in zip(few, many, strict=True):
        assert steps_of_many <= steps_of_few + 20


@contextmanager
def lines_run() -> Iterator[Counter[str]]:
    """Counts the lines of loragate's code that run, by file."""
    lines: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _argument: object) -> Trace | None:
        name = frame.f_code.co_filename
        if "loragate" not in name:
            return None
        if event == "line":
            lines[Path(name).name] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def lines_of_a_change(root: Path, tenants: int, folder: Path) -> list[Counter[str]]:
    """Of renewing the snapshot after a change, and of all that a server asks it then."""
    root.mkdir()
    url, store = f"sqlite:///{root / 'registry.db'}", ArtifactStore(root / "artifacts")
    fill(url, store, folder, tenants, each=5)
    counts: list[Counter[str]] = []
    with Registry(url, store) as registry:
        registry.snapshot()
        version = registry.aliases.set(SUPPORT, "challenger", 1)
        registry.pins.add(SUPPORT, "v1")
        with lines_run() as lines:
            snapshot = registry.snapshot()
        counts.append(lines)
        with lines_run() as lines:
            assert [target.alias for target in snapshot.unserved_aliases()] == ["challenger"]
            assert snapshot.pinned() == (version,)
            assert snapshot.served_merged() == snapshot.unreadable() == ()
            assert snapshot.is_meant(version)
            assert snapshot.adapter("acme", "support") is not None
        counts.append(lines)
    return counts


def test_a_change_runs_the_same_code_however_many_adapters_others_have(
    tmp_path: Path, write_adapter: WriteAdapter
):
    folder = write_adapter()

    few = lines_of_a_change(tmp_path / "few", 4, folder)
    many = lines_of_a_change(tmp_path / "many", 400, folder)

    assert many == few


def test_what_did_not_change_is_shared_with_the_snapshot_before(
    tmp_path: Path, write_adapter: WriteAdapter, database_url: str, store: ArtifactStore
):
    fill(database_url, store, write_adapter(), tenants=3, each=2)
    with Registry(database_url, store) as registry:
        old = registry.snapshot()
        registry.aliases.set(SUPPORT, "challenger", 1)
        new = registry.snapshot()

    assert new.adapters("acme")[0] is not old.adapters("acme")[0]
    for tenant in ("tenant-0", "tenant-1", "tenant-2"):
        assert new.adapters(tenant)[0] is old.adapters(tenant)[0]


def test_snapshot_of_an_unchanged_registry_is_the_same_object(registry: Registry):
    registry.tenants.create("acme")

    assert registry.snapshot() is registry.snapshot()


def test_database_that_was_put_back_to_an_older_state_is_read_whole(
    registry: Registry, database_url: str
):
    registry.tenants.create("acme")
    database = Database(database_url)
    with database.reading() as session:
        fresh = read_snapshot(session, Snapshot(revision=99))
    database.close()

    assert fresh == registry.snapshot()


@pytest.mark.parametrize("seed", range(4))
def test_renewed_snapshot_is_the_same_as_one_read_whole(
    registry: Registry, write_adapter: WriteAdapter, database_url: str, seed: int
):
    folders = [write_adapter(f"v{number}", seed=number) for number in range(3)]
    chance = random.Random(seed)
    database = Database(database_url)
    done: set[str] = set()
    for tenant in "ab":
        registry.tenants.create(tenant)
        registry.versions.publish(AdapterName(tenant, "one"), folders[0])
    for _ in range(120):
        change = chance.choice(CHANGES)
        try:
            change(registry, chance, folders)
            done.add(change.__name__)
        except LoragateError:
            continue  # what cannot be done now is no change either
        with database.reading() as session:
            snapshot = registry.snapshot()
            assert snapshot == read_snapshot(session, Snapshot())
        check_what_is_looked_up(snapshot)
    database.close()
    assert len(done) > 8


def check_what_is_looked_up(snapshot: Snapshot) -> None:
    """What followers are told is what they would find by looking at everything."""
    targets = list(snapshot.desired_aliases())
    assert list(snapshot.unserved_aliases()) == [w for w in targets if w.desired != w.serving]
    meant = {version for target in targets for version in (target.desired, target.serving)}
    entries = [
        entry
        for listing in snapshot.listings()
        for entry in snapshot.entries(listing.tenant, listing.name).values()
    ]
    for entry in entries:
        assert snapshot.is_meant(entry.version) == (entry.version in meant)
    pins = [
        (entry.pinned_at, entry.version.lora_id, entry.version)
        for entry in entries
        if entry.pinned_at is not None and entry.is_usable
    ]
    assert list(snapshot.pinned()) == [version for *_, version in sorted(pins)]


def _adapter(chance: random.Random) -> AdapterName:
    return AdapterName(chance.choice("aab"), chance.choice(("one", "one", "two")))


def _change_tenant(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    tenant = chance.choice("ab")
    registry.tenants.set_limits(tenant, Limits(max_concurrent=chance.randint(1, 9)))
    new = registry.tenants.create_key(tenant)
    if chance.random() < 0.5:
        registry.tenants.revoke_key(new.key_id)


def _delete(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    if chance.random() < 0.1:
        registry.tenants.delete("b")


def _publish(registry: Registry, chance: random.Random, folders: list[Path]) -> None:
    registry.versions.publish(_adapter(chance), chance.choice(folders))


def _promote(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    alias = chance.choice(("champion", "challenger"))
    registry.aliases.set(_adapter(chance), alias, chance.randint(1, 3))


def _move(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    version = chance.choice(registry.versions.show(_adapter(chance)).versions).version
    legal = LEGAL_MOVES[registry.snapshot().state(version)]
    if legal:
        registry.states.set(version, chance.choice(legal), "server", "by chance")


def _serve(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    for adapter, alias, desired, _ in registry.snapshot().desired_aliases():
        if registry.snapshot().state(desired) is AdapterState.READY:
            name = AdapterName(adapter.tenant, adapter.name)
            registry.aliases.set_serving(name, alias, desired.number, "server")


def _go_back(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    registry.aliases.rollback(_adapter(chance))


def _delete_alias(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    registry.aliases.delete(_adapter(chance), chance.choice(("champion", "challenger")))


def _retire(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    registry.states.retire(_adapter(chance), chance.randint(1, 3))


def _pin(registry: Registry, chance: random.Random, _folders: list[Path]) -> None:
    change = chance.choice((registry.pins.add, registry.pins.add, registry.pins.remove))
    change(_adapter(chance), f"v{chance.randint(1, 3)}")


def _restart(registry: Registry, _chance: random.Random, _folders: list[Path]) -> None:
    registry.states.reset("server")


CHANGES = [
    *(_change_tenant, _delete, _publish, _publish, _promote, _promote),
    *(_move, _move, _move, _serve, _serve, _go_back, _delete_alias, _retire, _restart, _pin),
]
