"""The options that the trainer's commands share, and how they print."""

import json
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def examples(*commands: str) -> str:
    """The end of a help text: one line for each command."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    # \b keeps the lines as they are, where other paragraphs are folded.
    return "\n".join(["\b", title, *(f"  $ {command}" for command in commands)])


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
