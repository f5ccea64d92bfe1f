"""How connections to the registry's database are made, and how long anything may take on them."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection as SqliteConnection
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event

WRITES: Final = "loragate_writes"
"""The execution option of transactions that write from the start."""

_BUSY_TIMEOUT_MILLISECONDS: Final = 10_000
_POOL_TIMEOUT_SECONDS: Final = 10
# A database that hangs, or a host that has vanished, must not hold a thread for longer than this.
_CONNECT_TIMEOUT_SECONDS: Final = 5
_LOCK_TIMEOUT_MILLISECONDS: Final = 10_000
_STATEMENT_TIMEOUT_MILLISECONDS: Final = 30_000
_OF_LIBPQ: Final[Mapping[str, int]] = {
    "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_LIBPQ_DRIVERS: Final = frozenset({"psycopg", "psycopg2"})


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def make_engine(url: URL, poolclass: type[Pool] | None = None, **options: Any) -> Engine:
    """Raises what `create_engine` raises. What the URL itself says of libpq's settings counts."""
    arguments: dict[str, int] = {}
    if url.get_driver_name() in _LIBPQ_DRIVERS:
        arguments = {name: value for name, value in _OF_LIBPQ.items() if name not in url.query}
    if poolclass is None:
        options.setdefault("pool_timeout", _POOL_TIMEOUT_SECONDS)
    engine = create_engine(
        url,
        poolclass=poolclass,
        connect_args=arguments,
        hide_parameters=True,  # answers and comments belong in no log
        **options,
    )
    if is_sqlite(url):
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_sqlite(connection: SqliteConnection, _record: object) -> None:
    # Python's driver would begin transactions by itself, later than asked and never IMMEDIATE.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MILLISECONDS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    # A damaged text is one unreadable row; by itself the driver would end the whole query.
    connection.text_factory = _decoded


def _begin_sqlite(connection: Connection) -> None:
    # A write transaction that began as a read can fail at once where another process writes;
    # one that is IMMEDIATE from the start waits for the one before.
    immediate = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _set_up_postgresql(connection: Any, _record: object) -> None:
    # Not as the connection's "options", which a pooler in between may refuse. A session's own
    # settings: rolled back with the transaction that the driver has begun for them, were it not
    # ended here.
    with connection.cursor() as cursor:
        cursor.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_MILLISECONDS}")
        cursor.execute(f"SET lock_timeout = {_LOCK_TIMEOUT_MILLISECONDS}")
    connection.commit()


def _decoded(stored: bytes) -> str:
    return stored.decode(errors="replace")
