import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from together import run_together

import loragate.adapters.migrations
from loragate.adapters.database import SCHEMA, Database
from loragate.adapters.errors import StoreError
from loragate.adapters.tables import Base

OPEN = """
import sys
from loragate.adapters.database import Database
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
    folder = Path(loragate.adapters.migrations.__file__).parent

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


def test_tables_can_be_written_for_postgresql():
    dialect = postgresql.dialect()

    for table in Base.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
