"""The connection to the registry's database: set-up, migration, and its kinds of transaction."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import Session

from loragate.adapters.errors import StoreError
from loragate.adapters.registry.connections import WRITES, is_sqlite, make_engine
from loragate.adapters.registry.database_errors import explained, unusable
from loragate.adapters.registry.serving_lock import ServingLock
from loragate.adapters.registry.tables import Revision

# The newest migration. A database that has it is opened without loading Alembic.
SCHEMA: Final = "0009"

# Any constant does: it names the lock that keeps two servers from migrating one PostgreSQL at once.
_MIGRATION_LOCK: Final = 0x10A6A7E


class Database:
    """An engine on a migrated database. Safe to use from several threads; processes wait for each
    other.

    Raises StoreError, here and in each transaction, when the database cannot be reached, written or
    locked within some seconds, and InvalidRecord for a value that it cannot keep.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            _require_file(self._url)
            self._engine = make_engine(self._url, pool_pre_ping=not is_sqlite(self._url))
            self.serving_lock = ServingLock(self._url)
        except ArgumentError as error:
            # The URL itself stays out of the message: it may hold a password.
            raise StoreError(
                "the registry's database URL cannot be used; write it as in "
                "sqlite:////srv/loragate/registry.db or postgresql+psycopg://user@host/loragate"
            ) from error
        except ModuleNotFoundError as error:
            raise StoreError(
                f"the registry's database needs the Python package {error.name!r}; install it"
            ) from error
        # A snapshot is several queries that must see one moment. SQLite's reads always do.
        moment = {} if is_sqlite(self._url) else {"isolation_level": "REPEATABLE READ"}
        self._reads = self._engine.execution_options(**moment)
        self._writes = self._engine.execution_options(**{WRITES: True})
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        self.serving_lock.release()
        self._engine.dispose()

    @contextmanager
    def reading(self, most_seconds: float | None = None) -> Iterator[Session]:
        """A transaction that sees one moment. Where its statements may take longer than others,
        ``most_seconds`` says how long.
        """
        with explained(self._url), Session(self._reads) as session:
            if most_seconds is not None and not is_sqlite(self._url):
                session.execute(text(f"SET LOCAL statement_timeout = {int(1000 * most_seconds)}"))
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or rolled back when the body raises."""
        with explained(self._url), Session(self._writes) as session, session.begin():
            yield session

    @contextmanager
    def changing(self) -> Iterator[Session]:
        """Like `writing`, and no other change runs until it ends. Usage may still be written."""
        with self.writing() as session:
            # SQLite has taken its lock with BEGIN IMMEDIATE; elsewhere this row is the lock.
            session.execute(select(Revision.value).with_for_update())
            yield session

    @contextmanager
    def changing_states(self) -> Iterator[Session]:
        """Like `changing`, for what the one server reports of what it has loaded. Raises
        ServingLockLost where another one may be that server by now.
        """
        with self.changing() as session:
            self.serving_lock.require(session)
            yield session

    def _migrate(self) -> None:
        try:
            with self._migration_lock(), explained(self._url):
                with self._reads.connect() as connection:
                    if _schema(connection) == SCHEMA:
                        return
                with self._writes.begin() as connection:
                    if not is_sqlite(self._url):
                        # Rows in millions take their time, and so may another's migration.
                        connection.execute(text("SET LOCAL statement_timeout = 0"))
                        connection.execute(text("SET LOCAL lock_timeout = 0"))
                        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                    _upgrade(connection)
        except DatabaseError as error:
            raise unusable(self._url, str(error.orig)) from error

    def _migration_lock(self) -> AbstractContextManager[None]:
        if not is_sqlite(self._url):
            return nullcontext()
        return _file_lock(Path(f"{self._url.database}.lock"))


def _require_file(url: URL) -> None:
    if is_sqlite(url) and url.database in (None, "", ":memory:"):
        raise StoreError("the registry needs a file that other processes can open; name one")


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); the registry's folder must exist and be "
            "writable by this user"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _schema(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def _upgrade(connection: Connection) -> None:
    # Half a second of import that a process needs only once it opens a registry.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(
            f"the registry's database was made by a newer loragate ({error}); upgrade this one"
        ) from error
