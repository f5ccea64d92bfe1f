"""`loragate rollout`: move requests to a new version, step by step."""

import re
from typing import Annotated

import typer

from loragate.server.cli.options import Adapter, AdminKey, Json, Url, examples
from loragate.server.cli.trials import (
    Action,
    Alpha,
    Gates,
    Shadow,
    changing,
    listing,
    percent,
    reporting,
    say_begun,
)

_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_CHANGES: dict[Action, str] = {
    "pause": "Hold the share where it is; a gate that fails still takes everybody back.",
    "resume": "Go on from where it was paused.",
    "abort": "End it without a verdict; the champion answers everybody again.",
}


def add_to(app: typer.Typer) -> None:
    rollout = typer.Typer(
        no_args_is_help=True, help="Move requests to a new version, step by step."
    )
    begin = "loragate rollout start acme/support --to v4 --steps 1,10,50,100 --every 10m"
    gates = "--gate 'error_rate<1%' --gate 'ttft_p95<1.2x' --gate 'rating>=champion-0.1'"
    rollout.command("start", epilog=examples(f"{begin} {gates}"))(start)
    rollout.command(
        "status",
        help="Show the adapter's rollout: its step, its figures, and what is missing.",
        epilog=examples("loragate rollout status acme/support"),
    )(reporting("rollout"))
    rollout.command(
        "list",
        help="List rollouts, newest first.",
        epilog=examples("loragate rollout list"),
    )(listing("rollout"))
    for action, meaning in _CHANGES.items():
        rollout.command(
            action, help=meaning, epilog=examples(f"loragate rollout {action} acme/support")
        )(changing("rollout", action))
    app.add_typer(rollout, name="rollout", epilog=examples(f"{begin} --gate 'error_rate<1%'"))


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"'{text}' is no time; write 30s, 10m, 2h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


def start(
    adapter: Adapter,
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="The version, such as v4.")],
    steps: Annotated[
        str, typer.Option(metavar="PERCENT,…", help="Its share of the users, step by step.")
    ] = "1,10,50,100",
    every: Annotated[
        float, typer.Option(metavar="TIME", parser=_seconds, help="At least so long at each step.")
    ] = "10m",  # pyright: ignore[reportArgumentType]  the parser's input
    gate: Gates = None,
    alpha: Alpha = 0.05,
    shadow: Shadow = "0%",  # pyright: ignore[reportArgumentType]
    merged: Annotated[bool, typer.Option("--merged", help="Serve the version merged.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Move an adapter's requests from its champion to another version, step by step.

    A step is held until its gates hold; a gate that fails takes everybody back at once. At the end
    the version is the adapter's champion.
    """
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.trial_views import RolloutRequest
    from loragate.server.admin_client.interface import open_admin

    body = RolloutRequest(
        to=to,
        steps=tuple(percent(step) * 100 for step in steps.split(",")),
        every_seconds=every,
        gates=tuple(gate or ()),
        alpha=alpha,
        shadow=shadow,
        merged=merged,
    )
    with open_admin(url, key) as admin:
        begun = admin.start_rollout(AdapterName.parse(adapter), body)
    say_begun(begun, "rollout status", as_json)
