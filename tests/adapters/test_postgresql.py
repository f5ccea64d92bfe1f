"""The registry on a real PostgreSQL."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from loragate.adapters.errors import (
    InvalidRecord,
    ServedElsewhere,
    ServingLockLost,
    StoreError,
)
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.registry import AdapterState, Limits, Registry
from loragate.adapters.registry.tables import Base
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import WriteAdapter
from support.registry.postgresql import end_connections, unreachable
from support.registry.promotions import let_serve

SUPPORT = AdapterName("acme", "support")
TIMEOUTS = {"statement_timeout": "30s", "lock_timeout": "10s"}


@pytest.fixture
def on_postgresql(postgresql_url: str, store: ArtifactStore) -> Iterator[Registry]:
    with Registry(postgresql_url, store) as registry:
        yield registry


def test_migrations_make_what_the_tables_say(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_a_version_is_published_promoted_and_rolled_back(
    on_postgresql: Registry, write_adapter: WriteAdapter
) -> None:
    on_postgresql.tenants.create("acme")
    for seed in (1, 2):
        on_postgresql.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed))
        let_serve(on_postgresql, SUPPORT, "champion", seed)
    assert on_postgresql.aliases.rollback(SUPPORT).number == 1
    assert on_postgresql.snapshot().resolve("acme", "support", "champion").number == 2
    [target] = on_postgresql.snapshot().unserved_aliases()
    assert target.desired.number == 1


def test_connections_that_were_ended_are_made_anew(
    on_postgresql: Registry, postgresql_url: str
) -> None:
    on_postgresql.tenants.create("acme")
    end_connections(postgresql_url)
    assert on_postgresql.snapshot().has_tenant("acme")


def test_a_connection_lost_within_a_transaction_is_told_as_such(postgresql_url: str) -> None:
    database = Database(postgresql_url)

    def lose() -> None:
        with database.changing() as session:
            end_connections(postgresql_url)
            session.execute(text("SELECT 1"))

    with pytest.raises(StoreError, match="did not answer"):
        lose()
    with database.reading() as session:
        assert session.scalar(text("SELECT 1")) == 1
    database.close()


def test_a_database_that_hangs_is_given_up(postgresql_url: str) -> None:
    database = Database(postgresql_url)

    def wait() -> None:
        with database.reading() as session:
            session.execute(text("SET LOCAL statement_timeout = 50"))
            session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(StoreError, match=r"did not answer: .*statement timeout"):
        wait()
    with database.reading() as session:
        limits = {name: session.scalar(text(f"SHOW {name}")) for name in TIMEOUTS}
    assert limits == TIMEOUTS
    database.close()


def test_a_row_that_another_holds_is_not_waited_for_without_end(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with database.changing():
            held.set()
            may_end.wait(10)

    def wait() -> None:
        with database.writing() as session:
            session.execute(text("SET LOCAL lock_timeout = 50"))
            session.execute(text("SELECT value FROM revision FOR UPDATE"))

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold)
        held.wait(10)
        with pytest.raises(StoreError, match=r"did not answer: .*lock timeout"):
            wait()
        may_end.set()
        holding.result(10)
    database.close()


def test_a_number_that_cannot_be_kept_is_refused_with_a_sentence(on_postgresql: Registry) -> None:
    on_postgresql.tenants.create("acme")
    with pytest.raises(InvalidRecord, match="cannot keep"):
        on_postgresql.tenants.set_limits("acme", Limits(max_concurrent=2**70))
    on_postgresql.tenants.set_limits("acme", Limits(max_concurrent=2**40))


def test_no_server_there_is_a_store_error_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match="did not answer"):
        Database(f"postgresql+psycopg://loragate@/x?host={tmp_path}")
    assert time.monotonic() - began < 10


def test_two_servers_cannot_have_one_registry(postgresql_url: str, store: ArtifactStore) -> None:
    with Registry(postgresql_url, store) as one, Registry(postgresql_url, store) as other:
        with (
            one.serving_alone(),
            pytest.raises(ServedElsewhere, match="another server"),
            other.serving_alone(),
        ):
            pass
        with other.serving_alone() as lock:
            assert lock.is_held


def test_a_lock_that_was_lost_is_taken_again(on_postgresql: Registry, postgresql_url: str) -> None:
    with on_postgresql.serving_alone() as lock:
        end_connections(postgresql_url)
        lock.keep()
        assert lock.is_held
        lock.keep()


def test_a_server_that_lost_its_lock_says_nothing_more_of_states(
    postgresql_url: str, store: ArtifactStore, write_adapter: WriteAdapter
) -> None:
    with Registry(postgresql_url, store) as one, Registry(postgresql_url, store) as other:
        one.tenants.create("acme")
        version = one.versions.publish(SUPPORT, write_adapter())
        one.aliases.set(SUPPORT, "champion", 1)
        with one.serving_alone() as lock:
            one.states.set(version, AdapterState.LOADING, "server")
            end_connections(postgresql_url)
            with other.serving_alone():
                other.states.reset("server")
                # It has not looked yet, so it holds its lock as far as it knows.
                assert lock.is_held
                for claim in (
                    lambda: one.states.set(version, AdapterState.LOADING, "server"),
                    lambda: one.aliases.set_serving(SUPPORT, "champion", 1, "server"),
                    lambda: one.merged.set_state(version, None, "server"),
                    lambda: one.states.reset("server"),
                    lambda: one.merged.reset("server"),
                    lambda: one.pins.refuse(version, "no room", "server"),
                ):
                    with pytest.raises(ServingLockLost, match="was lost"):
                        claim()
                one.tenants.create("globex")  # what anybody may do is not touched
                with pytest.raises(ServedElsewhere):
                    lock.keep()
                assert not lock.is_held
            lock.keep()
            one.states.set(version, AdapterState.LOADING, "server")


def test_while_the_database_is_away_the_lock_is_not_held(
    on_postgresql: Registry, postgresql_url: str
) -> None:
    with on_postgresql.serving_alone() as lock:
        with unreachable(postgresql_url):
            with pytest.raises(StoreError, match="did not answer"):
                lock.keep()
            assert not lock.is_held
        lock.keep()
        assert lock.is_held
