"""How a listing over HTTP is cut into parts, with its shape as it is: an array.

A client asks for as many rows as it wants, and goes on with what the answer's header names.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Response

from loragate.adapters.registry.pages import MOST_ROWS, Page

NEXT = "x-next-after"
"""The header with the cursor for the next part; there is none where the listing has ended."""

Row = TypeVar("Row")
After = Annotated[
    str,
    Query(
        max_length=1000,
        description=f"Go on after this row: what the header `{NEXT}` of the part before names.",
    ),
]


def _asked_page(
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = MOST_ROWS, after: After = ""
) -> Page:
    return Page(limit, after)


AskedPage = Annotated[Page, Depends(_asked_page)]


def name_next(
    response: Response, rows: Sequence[Row], page: Page, cursor: Callable[[Row], str]
) -> Sequence[Row]:
    """Returns the rows. A part that is full may be the last one; then the next is empty."""
    if len(rows) >= page.limit:
        response.headers[NEXT] = cursor(rows[-1])
    return rows
