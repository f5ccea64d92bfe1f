"""A listing's part: so many rows, from after a certain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loragate.adapters.errors import InvalidCursor

MOST_ROWS: Final = 1000
"""As many as one answer of a server holds."""


@dataclass(frozen=True, slots=True)
class Page:
    """``after`` names the row before the first one, in the words of the listing's own docstring;
    empty begins. What came before it may have gone meanwhile: nothing is listed twice or left out.
    """

    limit: int = MOST_ROWS
    after: str = ""

    def after_number(self) -> int | None:
        """For listings whose rows are numbered. Raises InvalidCursor."""
        if not self.after:
            return None
        if not (self.after.isascii() and self.after.isdecimal() and len(self.after) < 19):
            raise InvalidCursor(self.after)
        return int(self.after)

    def after_pair(self) -> tuple[str, str] | None:
        """For listings by tenant and something else: ``acme/support``. Raises InvalidCursor."""
        if not self.after:
            return None
        tenant, slash, name = self.after.partition("/")
        if not slash:
            raise InvalidCursor(self.after)
        return tenant, name


FIRST_PAGE: Final = Page()
EVERYTHING: Final = Page(2**31 - 1)
"""For callers on this machine who need all rows; not for what is sent to a client."""
