"""Rows from a server's memory into a table: each once, and none held up by one that is bad."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sqlalchemy import Insert
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    StatementError,
)
from sqlalchemy.orm import Session

from loragate.adapters.registry.records import UsageRow
from loragate.adapters.registry.tables import Base
from loragate.adapters.registry.trial_records import ExposureRow, OutcomeRow, ShadowRow

# Each takes a command a fiftieth of a second to import, and a database needs one of them.
if TYPE_CHECKING:
    from sqlalchemy.dialects.postgresql import Insert as PostgresqlInsert
    from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

_log = logging.getLogger(__name__)

Row = TypeVar("Row", UsageRow, ExposureRow, OutcomeRow, ShadowRow)

# The database's own faults: the same rows may be taken later.
_NOT_THE_ROWS: Final = (OperationalError, InterfaceError, InternalError)
# What a value can be refused with, by SQLAlchemy, by the database, or by its driver's Python.
_REFUSALS: Final = (StatementError, ValueError, TypeError, OverflowError)
_MOST_IN_DOUBT: Final = 16


def insert_new(session: Session, table: type[Base], rows: Sequence[Row]) -> None:
    """Insert those that are not there yet, by the table's unique keys.

    A row that the database refuses for its own sake (a key that it refers to is gone, a value that
    cannot be stored) is left out, and logged by its key. Raises what is not a row's fault; the
    transaction is to be rolled back then.
    """
    insertion = _Insertion[Row](session, insert_into(session, table).on_conflict_do_nothing())
    parts = [rows] if rows else []
    while parts:
        part = parts.pop()
        if not insertion.takes(part) and len(part) > 1:
            middle = len(part) // 2
            parts += part[middle:], part[:middle]
    insertion.end(table)


@dataclass(slots=True)
class _Insertion(Generic[Row]):
    session: Session
    statement: Insert
    taken: int = 0
    refused: list[tuple[Row, Exception]] = field(default_factory=list)

    def takes(self, part: Sequence[Row]) -> bool:
        try:
            with self.session.begin_nested():
                self.session.execute(self.statement, [asdict(row) for row in part])
        except _REFUSALS as error:
            if isinstance(error, _NOT_THE_ROWS) or _has_lost_connection(error):
                raise
            if len(part) == 1:
                self.refused.append((part[0], error))
                self._doubt()
            return False
        self.taken += len(part)
        return True

    def end(self, table: type[Base]) -> None:
        self._doubt(most=0)
        for row, error in self.refused:
            why = str(error.orig if isinstance(error, StatementError) else error)
            _log.error(
                "a row of %s cannot be stored and is left out: %s: %s: %s",
                table.__tablename__,
                _key(row),
                type(error).__name__,
                why.partition("\n")[0],  # PostgreSQL's next lines may show the row
            )

    def _doubt(self, most: int = _MOST_IN_DOUBT) -> None:
        """Raises where it is rather the statement that is refused: a column that is missing, say,
        is missing for every row.
        """
        if self.taken or len(self.refused) <= most:
            return
        _, error = self.refused[0]
        if isinstance(error, ProgrammingError):
            raise error


def insert_into(session: Session, table: type[Base]) -> SqliteInsert | PostgresqlInsert:
    """An insertion that can pass over rows that are there, or change them."""
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    return insert(table)


def _has_lost_connection(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _key(row: UsageRow | ExposureRow | OutcomeRow | ShadowRow) -> str:
    """Names the row without its texts, which may be a client's."""
    match row:
        case UsageRow():
            return f"usage {row.row_id} of {row.tenant}"
        case ExposureRow():
            return f"exposure {row.id} of arm {row.arm_id}"
        case _:
            return f"exposure {row.exposure_id}"
