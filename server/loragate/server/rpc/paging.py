"""How a listing over gRPC is cut into parts."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.server.errors import InvalidRequest

Row = TypeVar("Row")


class Paged(Protocol):
    """A request for a part of a listing."""

    @property
    def limit(self) -> int: ...
    @property
    def after(self) -> str: ...


def asked_page(request: Paged, has_limit: bool) -> Page:
    """Raises InvalidRequest."""
    if not has_limit:
        return Page(MOST_ROWS, request.after)
    if not 1 <= request.limit <= MOST_ROWS:
        raise InvalidRequest(
            f"limit is {request.limit}; it has to be 1 to {MOST_ROWS}.", param="limit"
        )
    return Page(request.limit, request.after)


def next_after(rows: Sequence[Row], page: Page, cursor: Callable[[Row], str]) -> str:
    """A part that is full may be the last one; then the next is empty."""
    return cursor(rows[-1]) if len(rows) >= page.limit else ""
