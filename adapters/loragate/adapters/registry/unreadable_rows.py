"""Rows of which one cannot be read, and the others can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from loragate.adapters.errors import LoragateError, StoreError, UnreadableRecord

Key = TypeVar("Key")
Record = TypeVar("Record")
_MOST_AT_ONCE: Final = 1000  # keys in one query


@dataclass(frozen=True, slots=True)
class UnreadableRow(Generic[Key]):
    """A row's key, and what is wrong with it."""

    key: Key
    reason: str


def read_apart(
    read: Callable[[Sequence[Key]], Sequence[Record]], keys: Sequence[Key]
) -> Iterator[Record | UnreadableRow[Key]]:
    """What ``read`` makes of the rows with these keys, and those of which it can make nothing.

    It reads many at once, and halves those that cannot be read together. What is no row's fault,
    such as a database that does not answer, is raised.
    """
    for first in range(0, len(keys), _MOST_AT_ONCE):
        yield from _halved(read, keys[first : first + _MOST_AT_ONCE])


@contextmanager
def readable(subject: str) -> Iterator[None]:
    """For making something of a row that was read: raises UnreadableRecord where that cannot be."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UnreadableRecord) or not is_of_a_row(error):
            raise
        raise UnreadableRecord(f"{subject}: {why_unreadable(error)}") from error


def is_of_a_row(error: Exception) -> bool:
    """Whether a row was read and says what it should not, not whether it could be reached."""
    if isinstance(error, StoreError):
        return isinstance(error, UnreadableRecord)
    # From a driver's or SQLAlchemy's conversion of a value, or from ours.
    return isinstance(error, ValueError | TypeError | ArithmeticError | LookupError | LoragateError)


def why_unreadable(error: Exception) -> str:
    return (
        f"its record in the registry's database cannot be read ({error}): it is damaged, or a "
        "newer loragate wrote it; upgrade this one, or restore the database from a backup"
    )


def _halved(
    read: Callable[[Sequence[Key]], Sequence[Record]], keys: Sequence[Key]
) -> Iterator[Record | UnreadableRow[Key]]:
    try:
        records = read(keys)
    except Exception as error:
        if not is_of_a_row(error):
            raise
        if len(keys) == 1:
            yield UnreadableRow(keys[0], why_unreadable(error))
            return
    else:
        yield from records
        return
    middle = len(keys) // 2
    yield from _halved(read, keys[:middle])
    yield from _halved(read, keys[middle:])
