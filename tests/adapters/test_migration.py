"""What the foundation wrote is there after the migrations, and the rules of old hold."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

import loragate.adapters.registry.migrations
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore

SUPPORT = AdapterName("acme", "support")
AT = "2026-01-01 00:00:00.000000"
MANIFEST = '{"rank": 2, "alpha": 4, "target_modules": ["q_proj"]}'
ROWS = f"""
INSERT INTO tenants (id, created_at) VALUES ('acme', '{AT}');
INSERT INTO adapters (id, tenant_id, name, next_number) VALUES (1, 'acme', 'support', 4);
INSERT INTO versions (id, adapter_id, number, digest, state, manifest, size_bytes, created_at)
    VALUES (3, 1, 1, 'd1', 'RETIRED', '{MANIFEST}', 10, '{AT}'),
           (5, 1, 2, 'd2', 'PUBLISHED', '{MANIFEST}', 10, '{AT}'),
           (7, 1, 3, 'd3', 'PUBLISHED', '{MANIFEST}', 10, '{AT}');
INSERT INTO aliases (adapter_id, name, version_id, updated_at) VALUES (1, 'champion', 7, '{AT}');
INSERT INTO audit (at, actor, action, subject, to_version, digest, reason)
    VALUES ('{AT}', 'ada', 'alias.set', 'acme/support@champion', 2, 'd2', ''),
           ('{AT}', 'ada', 'alias.set', 'acme/support@champion', 3, 'd3', '');
UPDATE revision SET value = 40;
"""


@pytest.fixture
def registry(database_url: str, store: ArtifactStore) -> Iterator[Registry]:
    """The foundation's registry, opened by this version."""
    config = Config()
    config.set_main_option(
        "script_location", str(Path(loragate.adapters.registry.migrations.__file__).parent)
    )
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        connection.executescript(ROWS)
    with Registry(database_url, store) as opened:
        yield opened


def test_alias_of_old_serves_what_it_pointed_to(registry: Registry):
    [target] = registry.snapshot().desired_aliases()

    assert (target.desired.number, target.serving) == (3, target.desired)
    assert target.desired.lora_id == 7
    states = {row.version.number: row.state for row in registry.versions.show(SUPPORT).versions}
    assert states == {1: "RETIRED", 2: "PUBLISHED", 3: "PUBLISHED"}


def test_what_is_changed_after_the_migration_is_seen(registry: Registry):
    registry.snapshot()
    version = registry.snapshot().resolve("acme", "support", "v3")
    registry.states.set(version, AdapterState.LOADING, "server")

    assert registry.snapshot().state(version) is AdapterState.LOADING
    assert registry.aliases.rollback(SUPPORT).number == 2


def test_numbers_of_old_are_not_given_again_and_states_are_checked(
    registry: Registry, database_url: str
):
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        insert = (
            "INSERT INTO versions (adapter_id, number, digest, state, manifest, size_bytes, "
            f"created_at) VALUES (1, 4, 'd4', ?, '{MANIFEST}', 10, '{AT}')"
        )
        connection.execute("DELETE FROM versions WHERE id = 7")
        cursor = connection.execute(insert, ["READY"])
        assert cursor.lastrowid == 8
        with pytest.raises(sqlite3.IntegrityError, match="ck_versions_state"):
            connection.execute(insert, ["BROKEN"])
        connection.rollback()
