"""The right to be a registry's one server, which records there what it has loaded.

In a PostgreSQL it is an advisory lock, which lives as long as its connection: that one is the
lock's own, in no pool, and has to be looked at, since nothing tells that it was lost. A SQLite file
has the lock of its server's home instead (`Home.serving_alone`), which ends with the process.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from loragate.adapters.errors import ServedElsewhere, ServingLockLost, StoreError
from loragate.adapters.registry.connections import is_sqlite, make_engine
from loragate.adapters.registry.database_errors import explained

# Any constant below 2**31 does; this one names the lock.
_LOCK: Final = 0x10A65E2
_IS_HELD: Final = text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = :pid "
    "AND classid = 0 AND objid = :lock AND objsubid = 1 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)


class ServingLock:
    """Taken by `take`, kept by calling `keep` every second or so, given back by `release`.

    Its calls block; threads may call at once.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine: Engine | None = None
        if not is_sqlite(url):
            self._engine = make_engine(url, NullPool, isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._pid: int | None = None  # of the connection's backend, while the lock is ours
        self._is_wanted = False
        self._one_call = threading.Lock()

    @property
    def is_held(self) -> bool:
        """Whether it was ours when it was last looked at."""
        return self._engine is None or self._pid is not None

    def take(self) -> None:
        """Raises ServedElsewhere where another server has it, and StoreError."""
        with self._one_call:
            self._take()
            self._is_wanted = True

    def keep(self) -> None:
        """Looks whether it is still ours, and takes it again where it is not.

        Raises ServedElsewhere where another server has it by now, and StoreError where the database
        does not answer; from then on it is not held.
        """
        with self._one_call:
            if not self._is_ours():
                self._drop()
                self._take()

    def require(self, session: Session) -> None:
        """For a change that only the one server may make: to be called once the session has locked
        out all other changes, so that another server's first change comes after this one.

        Raises ServingLockLost where the lock was taken and is not ours now.
        """
        if self._engine is None or not self._is_wanted:
            return
        pid = self._pid
        if pid is None or not session.scalar(_IS_HELD, _held_by(pid)):
            raise ServingLockLost(self._url.render_as_string())

    def release(self) -> None:
        self._is_wanted = False
        with self._one_call:
            if self._connection is not None:
                # Before the connection ends: its backend may outlive it for a moment.
                with suppress(DBAPIError):
                    self._connection.execute(select(func.pg_advisory_unlock(_LOCK)))
            self._drop()

    def _is_ours(self) -> bool:
        if self._engine is None:
            return True
        if self._connection is None or self._pid is None:
            return False
        try:
            with explained(self._url):
                return bool(self._connection.scalar(_IS_HELD, _held_by(self._pid)))
        except StoreError:
            return False

    def _take(self) -> None:
        if self._engine is None:
            return
        with explained(self._url):
            connection = self._engine.connect()
            try:
                is_ours = connection.scalar(select(func.pg_try_advisory_lock(_LOCK)))
                pid = connection.scalar(select(func.pg_backend_pid())) if is_ours else None
            except BaseException:
                connection.close()
                raise
        if pid is None:
            connection.close()
            raise ServedElsewhere(self._url.render_as_string())
        self._connection, self._pid = connection, pid

    def _drop(self) -> None:
        connection, self._connection, self._pid = self._connection, None, None
        if connection is not None:
            with suppress(DBAPIError):
                connection.close()


def _held_by(pid: int) -> dict[str, Any]:
    return {"pid": pid, "lock": _LOCK}
