"""A record of the registry that cannot be read is left out by itself; all others are followed."""

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loragate.adapters.errors import (
    AliasNotFound,
    LoragateError,
    StoreError,
    TenantNotFound,
    VersionFailed,
)
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.records import NewKey
from loragate.adapters.registry.registry import Limits, Registry
from loragate.adapters.registry.snapshot import Snapshot, SnapshotWatcher
from loragate.adapters.registry.snapshot_reader import read_snapshot
from loragate.adapters.registry.unreadable_rows import UnreadableRow, read_apart
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import write_adapter
from support.registry.promotions import let_serve

SUPPORT, ROUTER = AdapterName("acme", "support"), AdapterName("globex", "router")


@dataclass
class Damaged:
    """A registry with two tenants of one adapter each, whose file others write to."""

    registry: Registry
    database: Database
    path: Path
    keys: dict[str, NewKey]

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Restores the whole database afterwards."""
        with closing(sqlite3.connect(":memory:")) as kept:
            with closing(sqlite3.connect(self.path)) as live:
                live.backup(kept)
            try:
                yield
            finally:
                with closing(sqlite3.connect(self.path)) as live:
                    live.execute("PRAGMA synchronous = OFF")
                    kept.backup(live)

    def write(self, statement: str, *values: object) -> None:
        """By hand, past all checks, and as a change that a server is to see."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(statement, values)
            connection.execute("UPDATE revision SET value = value + 1")
            for table in ("tenants", "adapters", "versions"):
                connection.execute(f"UPDATE {table} SET revision = (SELECT value FROM revision)")
            connection.commit()


@pytest.fixture(scope="module")
def furnished(
    tmp_path_factory: pytest.TempPathFactory, empty_registry: Path
) -> tuple[Path, dict[str, NewKey]]:
    """A database to copy, and the keys that it knows."""
    root = tmp_path_factory.mktemp("furnished")
    path, keys = root / "registry.db", {}
    shutil.copy(empty_registry, path)
    with Registry(f"sqlite:///{path}", ArtifactStore(root / "artifacts")) as registry:
        for number, adapter in enumerate((SUPPORT, ROUTER)):
            keys[adapter.tenant] = registry.tenants.create(adapter.tenant)
            for version in (1, 2):
                seed = 10 * number + version
                registry.versions.publish(
                    adapter, write_adapter(root / f"adapter-{seed}", seed=seed)
                )
            let_serve(registry, adapter, "champion", 1)
            registry.aliases.set(adapter, "challenger", 2)
    return path, keys


@pytest.fixture
def damaged(furnished: tuple[Path, dict[str, NewKey]], tmp_path: Path) -> Iterator[Damaged]:
    original, keys = furnished
    path = tmp_path / "registry.db"
    shutil.copy(original, path)
    database = Database(f"sqlite:///{path}")
    with Registry(f"sqlite:///{path}", ArtifactStore(tmp_path / "artifacts")) as registry:
        registry.snapshot()
        yield Damaged(registry, database, path, keys)
    database.close()


NEWER = json.dumps({"rank": 2, "alpha": 4, "target_modules": ["q"], "of_the_future": True})
DAMAGES: dict[str, tuple[str, ...]] = {
    "a newer manifest": ("manifest = ?", NEWER),
    "a torn manifest": ("manifest = ?", '{"rank": 2, "al'),
    "a newer state": ("state = 'ASLEEP'",),
    "a torn time": ("pinned_at = '2026-13-77'",),
    "a time that is a number": ("merged_since = 77, merged_state = 'WAITING'",),
    "a newer merged state": ("merged_state = 'DREAMING'",),
    "text that is none": ("manifest = CAST(x'ff80ff' AS TEXT)",),
    "a blob": ("manifest = x'00ff00'",),
    "nothing": ("manifest = 0",),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_version_that_cannot_be_read_is_left_out_and_all_others_are_followed(
    damaged: Damaged, damage: str
) -> None:
    change, *values = DAMAGES[damage]
    damaged.write(f"UPDATE versions SET {change} WHERE id = 1", *values)
    damaged.registry.tenants.revoke_key(damaged.keys["acme"].key_id)

    snapshot = damaged.registry.snapshot()

    assert snapshot.tenant_of_key(hash_key(damaged.keys["acme"].key)) is None
    for selector in ("v1", "champion"):
        with pytest.raises(VersionFailed, match="cannot be read"):
            snapshot.resolve("acme", "support", selector)
    assert snapshot.resolve("acme", "support", "v2").number == 2
    assert snapshot.resolve("globex", "router", "champion").number == 1
    assert [each.subject for each in snapshot.unreadable()] == ["acme/support@v1"]


def test_a_version_is_read_again_once_its_record_is_mended(damaged: Damaged) -> None:
    manifest = damaged.registry.snapshot().manifest
    version = damaged.registry.snapshot().resolve("acme", "support", "v1")
    before = manifest(version)
    damaged.write("UPDATE versions SET manifest = 'torn' WHERE id = 1")
    assert not damaged.registry.snapshot().can_answer(version)
    damaged.write("UPDATE versions SET manifest = ? WHERE id = 1", before.to_json())
    assert damaged.registry.snapshot().manifest(version) == before
    assert damaged.registry.snapshot().unreadable() == ()


def test_what_cannot_be_read_stays_known_while_its_adapter_changes(damaged: Damaged) -> None:
    damaged.write("UPDATE versions SET manifest = 'torn' WHERE id = 1")
    damaged.registry.snapshot()
    damaged.registry.aliases.delete(SUPPORT, "challenger")
    assert [each.subject for each in damaged.registry.snapshot().unreadable()] == [
        "acme/support@v1"
    ]


def test_a_tenant_that_cannot_be_read_is_refused_until_it_can(damaged: Damaged) -> None:
    key = hash_key(damaged.keys["acme"].key)
    damaged.write("UPDATE tenants SET max_concurrent = -5 WHERE id = 'acme'")
    snapshot = damaged.registry.snapshot()
    assert snapshot.tenant_of_key(key) is None
    with pytest.raises(TenantNotFound):
        snapshot.limits("acme")
    assert snapshot.limits("globex") == Limits()
    assert [each.subject for each in snapshot.unreadable()] == ["acme"]

    damaged.registry.tenants.set_limits("acme", Limits(max_concurrent=5))
    snapshot = damaged.registry.snapshot()
    assert snapshot.tenant_of_key(key) == "acme"
    assert snapshot.resolve("acme", "support", "champion").number == 1
    assert snapshot.unreadable() == ()


def test_an_alias_of_no_version_is_left_out(damaged: Damaged) -> None:
    damaged.write("UPDATE aliases SET desired_id = 99 WHERE adapter_id = 1 AND name = 'challenger'")
    snapshot = damaged.registry.snapshot()
    with pytest.raises(AliasNotFound):
        snapshot.resolve("acme", "support", "challenger")
    assert snapshot.resolve("acme", "support", "champion").number == 1
    assert [each.subject for each in snapshot.unreadable()] == ["acme/support@challenger"]


async def test_each_is_named_once_in_the_log(
    damaged: Damaged, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = SnapshotWatcher(damaged.registry)
    await watcher.refresh()
    damaged.write("UPDATE versions SET manifest = 'torn' WHERE id = 1")
    with caplog.at_level(logging.ERROR):
        await watcher.refresh()
        damaged.registry.tenants.create_key("globex")
        damaged.registry.aliases.delete(SUPPORT, "challenger")
        await watcher.refresh()
    [line] = caplog.messages
    assert line.startswith("acme/support@v1 is left out: ")


@pytest.mark.parametrize("bad", [[], [0], [7], [0, 1, 2], list(range(50)), [999, 1000, 2500]])
def test_rows_are_read_together_but_for_those_that_cannot_be(bad: list[int]) -> None:
    calls = 0

    def read(keys: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if any(key in bad for key in keys):
            raise ValueError("a torn row")
        return list(keys)

    found = list(read_apart(read, range(3000)))
    assert [one.key for one in found if isinstance(one, UnreadableRow)] == bad
    assert [one for one in found if isinstance(one, int)] == [
        k for k in range(3000) if k not in bad
    ]
    assert calls <= 3 + 2 * 10 * len(bad)


def test_a_database_that_does_not_answer_is_no_rows_fault() -> None:
    def read(_keys: Sequence[int]) -> list[int]:
        raise StoreError("the database is away")

    with pytest.raises(StoreError):
        list(read_apart(read, range(3)))


OF_ACME = {
    "tenants": "id = 'acme'",
    "api_keys": "tenant_id = 'acme'",
    "adapters": "id = 1",
    "versions": "id = 1",
    "aliases": "adapter_id = 1 AND name = 'champion'",
}
COLUMNS = {
    "tenants": ("created_at", "requests_per_minute", "max_concurrent", "deleted_at"),
    "api_keys": ("sha256", "name", "created_at", "revoked_at"),
    "adapters": ("tenant_id", "name", "next_number"),
    "versions": (
        *("adapter_id", "number", "digest", "state", "reason", "retiring", "manifest"),
        *("size_bytes", "created_at", "pinned_at", "merged_since", "merged_state"),
    ),
    "aliases": ("desired_id", "serving_id", "desired_mode", "serving_mode", "updated_at"),
}
ODD = ("", "x", "\u00e9\u0000", -1, 0, 2**40, 2.5, b"\xff\x00", "2026-13-77 99:00", "[]", "null")


@given(
    where=st.sampled_from([(table, column) for table in COLUMNS for column in COLUMNS[table]]),
    value=st.sampled_from(ODD),
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_record_says_other_tenants_are_served_as_before(
    damaged: Damaged, where: tuple[str, str], value: object
) -> None:
    table, column = where
    [(before,)] = damaged.rows(f"SELECT {column} FROM {table} WHERE {OF_ACME[table]} LIMIT 1")
    change = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
    [(row,)] = damaged.rows(f"SELECT rowid FROM {table} WHERE {OF_ACME[table]} LIMIT 1")
    try:
        damaged.write(change, value, row)
    except sqlite3.IntegrityError:
        return  # the database itself would not have it
    try:
        with damaged.database.reading() as session:
            whole = read_snapshot(session, Snapshot())
        for snapshot in (damaged.registry.snapshot(), whole):
            key = hash_key(damaged.keys["globex"].key)
            assert snapshot.tenant_of_key(key) == "globex"
            assert snapshot.resolve("globex", "router", "champion").number == 1
    finally:
        damaged.write(change, before, row)
    assert damaged.registry.snapshot().resolve("acme", "support", "champion").number == 1


QUESTIONS: dict[str, Callable[[Registry], object]] = {
    "show": lambda registry: registry.versions.show(SUPPORT),
    "list_tenants": lambda registry: registry.tenants.list(),
    "list_keys": lambda registry: registry.tenants.list_keys("acme"),
    "adapters": lambda registry: registry.adapters(),
    "audit": lambda registry: registry.audit.list(),
    "usage": lambda registry: registry.usage.list(),
    "usage_totals": lambda registry: registry.usage.totals(),
    "trials": lambda registry: registry.trials.list(),
    "trials_under_way": lambda registry: registry.trials.under_way(),
    "collectable": lambda registry: registry.artifacts.collectable(),
    "merged_model": lambda registry: registry.merges.folder(SUPPORT, 1),
    "pin": lambda registry: registry.pins.add(SUPPORT, "v1"),
    "set_alias": lambda registry: registry.aliases.set(SUPPORT, "champion", 2),
    "rollback": lambda registry: registry.aliases.rollback(SUPPORT),
    "reset_states": lambda registry: registry.states.reset("server"),
    "reset_merged": lambda registry: registry.merged.reset("server"),
    "set_limits": lambda registry: registry.tenants.set_limits("acme", Limits()),
    "retire": lambda registry: registry.states.retire(SUPPORT, 2),
    "delete_tenant": lambda registry: registry.tenants.delete("acme"),
}


@given(
    where=st.sampled_from([(table, column) for table in COLUMNS for column in COLUMNS[table]]),
    value=st.sampled_from(ODD),
    question=st.sampled_from(sorted(QUESTIONS)),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_record_says_the_registry_answers_or_says_what_is_wrong(
    damaged: Damaged, where: tuple[str, str], value: object, question: str
) -> None:
    table, column = where
    with damaged.put_back():
        try:
            damaged.write(f"UPDATE {table} SET {column} = ? WHERE {OF_ACME[table]}", value)
        except sqlite3.IntegrityError:
            return
        with suppress(LoragateError):
            QUESTIONS[question](damaged.registry)


@given(
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    question=st.sampled_from(sorted(QUESTIONS)),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_of_the_file_is_told_in_a_sentence_if_at_all(
    furnished: tuple[Path, dict[str, NewKey]], tmp_path: Path, place: float, bit: int, question: str
) -> None:
    path = tmp_path / "flipped.db"
    for leftover in ("-wal", "-shm", ".lock"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    content = bytearray(furnished[0].read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        with Registry(f"sqlite:///{path}", ArtifactStore(tmp_path / "artifacts")) as registry:
            registry.snapshot()
            QUESTIONS[question](registry)
    except LoragateError as error:
        assert str(error)
