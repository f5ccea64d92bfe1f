"""The options that many commands share, and how a command shows its examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from loragate.adapters.registry.pages import MOST_ROWS

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="LORAGATE_URL",
        metavar="URL",
        help="Work on a remote server's registry instead of the one in LORAGATE_HOME.",
    ),
]
AdminKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="LORAGATE_ADMIN_KEY",
        show_envvar=True,
        metavar="KEY",
        help="The remote server's admin key. Better given by the environment.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="PATH", help="The configuration file (TOML)."),
]
Limit = Annotated[
    int, typer.Option("--limit", min=1, max=MOST_ROWS, help="Rows at most.", show_default=True)
]
After = Annotated[
    str,
    typer.Option(
        "--after", metavar="ROW", help="Go on after this row, which the part before has named."
    ),
]
Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id, such as acme.")]
Adapter = Annotated[
    str, typer.Argument(metavar="TENANT/ADAPTER", help="The adapter, such as acme/support.")
]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="The version, such as v3.")]


def text_of(longest: int) -> Callable[[str], str]:
    """A callback that refuses a longer text than the registry takes, and what is no text."""

    def check(value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter("it holds bytes that are no UTF-8 text.") from None
        if len(value) > longest:
            raise typer.BadParameter(f"it has {len(value)} characters; {longest} are allowed.")
        return value

    return check


Reason = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", callback=text_of(1000), help="Why; kept in the audit log."
    ),
]


def examples(*commands: str) -> str:
    """The end of a help text: one line for each command."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    # \b keeps the lines as they are, where other paragraphs are folded.
    return "\n".join(["\b", title, *(f"  $ {command}" for command in commands)])
