"""`loragate doctor`: is this machine ready to serve?"""

from dataclasses import asdict
from typing import Annotated

import typer

from loragate.server.cli.options import ConfigFile, Json, examples
from loragate.server.cli.output import print_json, say

_MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


def add_to(app: typer.Typer) -> None:
    app.command(
        "doctor",
        epilog=examples("loragate doctor", "loragate doctor --deep", "loragate doctor --json"),
    )(doctor)


def doctor(
    config: ConfigFile = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also hash every stored adapter again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether this machine is ready to serve.

    Says what to do where something is wrong, and exits with 1 if anything fails.
    """
    from loragate.adapters.home import Home
    from loragate.server.config import load_config

    settings = load_config(config)  # before the next line, which imports for a second
    from loragate.server.cli.doctor_checks import run_checks

    found = []
    for check in run_checks(settings, Home.from_environment(), deep):
        found.append(check)
        if not as_json:
            say(
                _MARKS[check.state] + "  {name} {message}",
                name=f"{check.name:9}",
                message=check.message,
            )
    if as_json:
        print_json([asdict(check) for check in found])
    if any(check.state == "fail" for check in found):
        raise typer.Exit(1)
