import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

import loragate.adapters.registry.migrations
from loragate.adapters.errors import InvalidRecord, StoreError, UnreadableRecord
from loragate.adapters.registry.connections import make_engine
from loragate.adapters.registry.database import SCHEMA, Database
from loragate.adapters.registry.database_errors import explained
from loragate.adapters.registry.registry import Limits, Registry
from loragate.adapters.registry.tables import Base
from support.concurrent_processes import run_together

OPEN = """
import sys
from loragate.adapters.registry.database import Database
print("ready", flush=True)
sys.stdin.readline()
Database(sys.argv[1]).close()
"""


def test_migrations_make_what_the_tables_say(database_url: str):
    Database(database_url).close()

    with create_engine(database_url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    connection.engine.dispose()


def test_newest_migration_is_the_one_the_code_expects():
    folder = Path(loragate.adapters.registry.migrations.__file__).parent

    assert ScriptDirectory(str(folder)).get_current_head() == SCHEMA


def test_processes_that_start_at_once_migrate_once(database_url: str):
    assert run_together(OPEN, *[[database_url]] * 2) == ["", ""]


def test_database_of_a_newer_loragate_is_refused(database_url: str):
    Database(database_url).close()
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()

    with pytest.raises(StoreError, match="newer loragate"):
        Database(database_url)


def test_file_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / "registry.db").write_bytes(b"this is no database" * 100)

    with pytest.raises(StoreError, match="cannot be used"):
        Database(f"sqlite:///{tmp_path / 'registry.db'}")


def test_page_that_is_damaged_is_told_when_it_is_read(database_url: str):
    Database(database_url).close()
    file = Path(database_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as connection:
        [[page]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tenants'")
        [[size]] = connection.execute("PRAGMA page_size")
    with file.open("r+b") as pages:
        pages.seek((page - 1) * size)
        pages.write(b"\xa5" * size)
    database = Database(database_url)

    with pytest.raises(StoreError, match="malformed; restore it"), database.reading() as session:
        session.connection().exec_driver_sql("SELECT * FROM tenants")
    database.close()


@pytest.mark.parametrize("url", ["registry.db", "nosql://x", "sqlite://", "sqlite:///:memory:"])
def test_url_without_a_lasting_database_is_refused(url: str):
    with pytest.raises(StoreError):
        Database(url)


def test_missing_driver_is_named():
    with pytest.raises(StoreError, match="'pg8000'; install it"):
        Database("postgresql+pg8000://localhost/loragate")


def test_missing_folder_is_refused_with_its_name(tmp_path: Path):
    with pytest.raises(StoreError, match="nowhere"):
        Database(f"sqlite:///{tmp_path / 'nowhere' / 'registry.db'}")


def test_failed_change_leaves_the_database_as_it_was(database_url: str):
    database = Database(database_url)

    def change_and_fail() -> None:
        with database.changing() as session:
            session.connection().exec_driver_sql("UPDATE revision SET value = 99")
            raise KeyError

    with pytest.raises(KeyError):
        change_and_fail()

    with database.reading() as session:
        assert session.connection().exec_driver_sql("SELECT value FROM revision").scalar() == 0
    database.close()


def test_foreign_keys_are_enforced(database_url: str):
    database = Database(database_url)

    with database.reading() as session:
        pragma = session.connection().exec_driver_sql
        assert pragma("PRAGMA foreign_keys").scalar() == 1
        assert pragma("PRAGMA journal_mode").scalar() == "wal"
        assert pragma("PRAGMA busy_timeout").scalar() == 10_000
    database.close()


def test_connections_that_are_all_busy_are_told_as_such(database_url: str):
    url = make_url(database_url)
    engine = make_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)

    def ask_beside() -> None:
        with explained(url), engine.connect():
            pass

    with engine.connect(), pytest.raises(StoreError, match="are busy; it answers too slowly"):
        ask_beside()
    ask_beside()
    engine.dispose()


def test_a_number_that_cannot_be_kept_is_refused_with_a_sentence(registry: Registry):
    registry.tenants.create("acme")

    with pytest.raises(InvalidRecord, match="cannot keep"):
        registry.tenants.set_limits("acme", Limits(max_concurrent=2**70))


DRIVERS_OWN = sqlite3.OperationalError("the driver's words\nand the statement's")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exc.OperationalError("SELECT", {}, DRIVERS_OWN), StoreError),
        (exc.InterfaceError("SELECT", {}, DRIVERS_OWN), StoreError),
        (exc.InternalError("SELECT", {}, DRIVERS_OWN), StoreError),
        (exc.DatabaseError("SELECT", {}, DRIVERS_OWN), StoreError),
        (exc.ProgrammingError("SELECT", {}, DRIVERS_OWN, connection_invalidated=True), StoreError),
        (exc.TimeoutError(), StoreError),
        (exc.NoResultFound(), UnreadableRecord),
        (exc.DataError("INSERT", {}, DRIVERS_OWN), InvalidRecord),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, Exception) else "",
)
def test_errors_of_the_database_become_sentences(error: Exception, expected: type[Exception]):
    def fail() -> None:
        with explained(make_url("postgresql://me:secret@host/name")):
            raise error

    with pytest.raises(expected) as raised:
        fail()
    assert "secret" not in str(raised.value)
    assert "statement" not in str(raised.value)


@pytest.mark.parametrize("kind", [exc.IntegrityError, exc.ProgrammingError])
def test_mistakes_of_ours_stay_what_they_are(kind: type[exc.DBAPIError]):
    def fail() -> None:
        with explained(make_url("postgresql://host/name")):
            raise kind("INSERT", {}, DRIVERS_OWN)

    with pytest.raises(kind):
        fail()


def test_tables_can_be_written_for_postgresql():
    dialect = postgresql.dialect()

    for table in Base.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
