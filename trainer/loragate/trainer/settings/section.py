"""A table of a run file, and the word "auto"."""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

Auto = Literal["auto"]
Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the run file. An unknown key is refused by name."""


def settled(value: T | Auto) -> T:
    """A value that `resolve` has made definite; to ask earlier is a mistake of the program."""
    if value == "auto":
        raise ValueError("this setting is still 'auto'; resolve the run file first")
    return value
