"""The connection to the registry's database: set-up, migration, and its kinds of transaction."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session

from loragate.adapters.errors import StoreError
from loragate.adapters.tables import Revision

# The newest migration. A database that has it is opened without loading Alembic.
SCHEMA: Final = "0008"

_BUSY_TIMEOUT_MILLISECONDS: Final = 10_000
_WRITES: Final = "loragate_writes"
# Any constant does: it names the lock that keeps two servers from migrating one PostgreSQL at once.
_MIGRATION_LOCK: Final = 0x10A6A7E
_SERVING_LOCK: Final = 0x10A65E2  # another constant: the one server of a PostgreSQL


class Database:
    """An engine on a migrated database. Safe to use from several threads; processes wait for each
    other.

    Raises StoreError, here and in each transaction, when the database cannot be reached, written or
    locked within ten seconds.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            self._engine = create_engine(
                self._url,
                pool_pre_ping=not self._is_sqlite,
                hide_parameters=True,  # answers and comments belong in no log
            )
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
        if self._is_sqlite:
            _set_up_sqlite(self._engine)
            self._reads = self._engine
        else:
            # A snapshot is several queries that must see one moment. SQLite's reads always do.
            self._reads = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._writes = self._engine.execution_options(**{_WRITES: True})
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one moment."""
        with self._explained(), Session(self._reads) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or rolled back when the body raises."""
        with self._explained(), Session(self._writes) as session, session.begin():
            yield session

    @contextmanager
    def changing(self) -> Iterator[Session]:
        """Like `writing`, and no other change runs until it ends. Usage may still be written."""
        with self.writing() as session:
            # SQLite has taken its lock with BEGIN IMMEDIATE; elsewhere this row is the lock.
            session.execute(select(Revision.value).with_for_update())
            yield session

    @contextmanager
    def serving_alone(self) -> Iterator[None]:
        """Held by the one server of a PostgreSQL; a file has its home's lock, `Home.serving_alone`.

        The server's end gives it back, and so does the loss of its connection. Raises StoreError if
        there is a server.
        """
        if self._is_sqlite:
            yield
            return
        with self._explained():
            connection = self._engine.connect()
        with connection:
            connection.detach()  # closed at the end, not kept in the pool with the lock
            if not connection.scalar(select(func.pg_try_advisory_lock(_SERVING_LOCK))):
                raise StoreError(
                    f"another server runs on {self._url.render_as_string()}; stop it first, or "
                    "give this one a database of its own"
                )
            connection.commit()
            yield

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def _migrate(self) -> None:
        try:
            with self._migration_lock(), self._explained():
                with self._reads.connect() as connection:
                    if _schema(connection) == SCHEMA:
                        return
                with self._writes.begin() as connection:
                    if not self._is_sqlite:
                        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                    _upgrade(connection)
        except DatabaseError as error:
            raise self._unusable(error) from error

    def _migration_lock(self) -> AbstractContextManager[None]:
        if not self._is_sqlite:
            return nullcontext()
        if not self._url.database or self._url.database == ":memory:":
            raise StoreError("the registry needs a file that other processes can open; name one")
        return _file_lock(Path(f"{self._url.database}.lock"))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise StoreError(
                f"the registry's database {self._url.render_as_string()} did not answer: "
                f"{error.orig}; check that it can be reached and written, that its disk has room, "
                "and that no other process holds it locked"
            ) from error
        except DatabaseError as error:
            # Its subclasses, such as a broken constraint, are mistakes of ours.
            if type(error) is not DatabaseError:
                raise
            raise self._unusable(error) from error

    def _unusable(self, error: DatabaseError) -> StoreError:
        return StoreError(
            f"the registry's database {self._url.render_as_string()} cannot be used: "
            f"{error.orig}; restore it from a backup"
        )


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_pragmas(connection: SqliteConnection, _record: object) -> None:
        # Python's driver would begin transactions by itself, later than asked and never IMMEDIATE.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MILLISECONDS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        # A damaged text is one unreadable row; by itself the driver would end the whole query.
        connection.text_factory = _decoded

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A write transaction that began as a read can fail at once where another process writes;
        # one that is IMMEDIATE from the start waits its turn.
        immediate = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _decoded(stored: bytes) -> str:
    return stored.decode(errors="replace")


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
