"""What the database's errors mean to whoever asked: sentences, and who is to do something.

SQLAlchemy's errors are many, and a caller that knew them all would know SQLAlchemy. Those that say
"not now" or "not any more" become StoreError, those that a value is to blame for InvalidRecord. A
broken constraint or a wrong statement is a mistake of this package and stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    DBAPIError,
    InterfaceError,
    InternalError,
    MultipleResultsFound,
    NoResultFound,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from loragate.adapters.errors import InvalidRecord, StoreError, UnreadableRecord


@contextmanager
def explained(url: URL) -> Iterator[None]:
    """Turns the errors of the block's database into ours, if they are not its code's mistakes."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreError(
            f"all connections to the registry's database {_shown(url)} are busy; it answers too "
            "slowly, or too many ask at once"
        ) from error
    except DataError as error:
        raise InvalidRecord(f"{_first_line(error)}") from error
    except (OverflowError, UnicodeEncodeError) as error:
        # SQLite's driver, of a number above 64 bits; drivers, of half a surrogate pair.
        raise InvalidRecord(f"{error}") from error
    except (NoResultFound, MultipleResultsFound) as error:
        raise UnreadableRecord(
            f"the registry's database {_shown(url)} lacks a record that another one refers to, or "
            "has it twice; restore it from a backup"
        ) from error
    except UnicodeDecodeError as error:
        # SQLite's driver, of a schema or a message with bytes of a damaged page.
        raise unusable(url, "it is damaged") from error
    except DBAPIError as error:
        if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            raise StoreError(
                f"the registry's database {_shown(url)} did not answer: {_first_line(error)}; "
                "check that it can be reached and written, that its disk has room, and that no "
                "other process holds it locked"
            ) from error
        if type(error) is DatabaseError or isinstance(error, InternalError):
            raise unusable(url, _first_line(error)) from error
        raise


def unusable(url: URL, why: str) -> StoreError:
    return StoreError(
        f"the registry's database {_shown(url)} cannot be used: {why}; restore it from a backup"
    )


def _shown(url: URL) -> str:
    return url.render_as_string()  # without a password


def _first_line(error: DBAPIError) -> str:
    # PostgreSQL's further lines repeat the statement with its values.
    return str(error.orig).partition("\n")[0]
