"""How the command line prints: JSON for scripts, tables and short sentences for people."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

Row = TypeVar("Row")
SHORT_DIGEST = 12  # characters: enough to tell versions apart by eye


def console() -> "Console":
    """Standard output: styled in a terminal, plain and unfolded in a pipe."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=200)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_views(views: "Iterable[BaseModel]") -> None:
    """A JSON array."""
    print_json([view.model_dump(mode="json") for view in views])


def print_view(view: "BaseModel", *fields: str) -> None:
    """A JSON object, of the named fields where some are named."""
    print_json(view.model_dump(mode="json", include=set(fields) or None))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """A table, or the sentence `empty` where there is no row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        console().print(empty, markup=False)


def name_next(rows: Sequence[Row], limit: int, cursor: "Callable[[Row], str]") -> None:
    """Says on standard error, which no script reads as a row, how the listing goes on."""
    if len(rows) >= limit:
        typer.echo(f"There may be more: go on with --after {cursor(rows[-1])}", err=True)


def say(sentence: str, **parts: str) -> None:
    """A sentence in rich's markup; `{parts}` are put in as they are, their brackets no markup."""
    from rich.markup import escape

    console().print(
        sentence.format_map({name: escape(part) for name, part in parts.items()}), soft_wrap=True
    )


def when(time: datetime | None) -> str:
    """A time of the registry (UTC) as people read it."""
    return "" if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(size_bytes: int) -> str:
    """`5.2 MB`."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def short(digest: str) -> str:
    return digest[:SHORT_DIGEST]
