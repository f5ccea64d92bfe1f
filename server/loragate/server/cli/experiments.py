"""`loragate experiment`: find out which of several arms is better."""

from typing import Annotated

import typer

from loragate.server.cli.options import Adapter, AdminKey, Json, Reason, Url, examples
from loragate.server.cli.trials import (
    Alpha,
    Gates,
    Shadow,
    change,
    changing,
    listing,
    reporting,
    say_begun,
)


def add_to(app: typer.Typer) -> None:
    experiment = typer.Typer(no_args_is_help=True, help="Find out which of several arms is better.")
    begin = "loragate experiment start acme/support --arm champion=v3:50% --arm new=v4:50%"
    experiment.command("start", epilog=examples(f"{begin} --gate 'rating>=champion-0.1' --auto"))(
        start
    )
    experiment.command(
        "report",
        help="Show the adapter's experiment: its arms, its figures, and what may be concluded.",
        epilog=examples(
            "loragate experiment report acme/support",
            "loragate experiment report acme/support --html report.html",
        ),
    )(reporting("experiment"))
    experiment.command(
        "list",
        help="List experiments, newest first.",
        epilog=examples("loragate experiment list"),
    )(listing("experiment"))
    experiment.command(
        "stop",
        help="End it without a verdict; the champion answers everybody again.",
        epilog=examples("loragate experiment stop acme/support"),
    )(changing("experiment", "abort"))
    experiment.command(
        "resume",
        help="Go on after an arm that could not answer has been mended.",
        epilog=examples("loragate experiment resume acme/support"),
    )(changing("experiment", "resume"))
    experiment.command(
        "decide",
        epilog=examples(
            "loragate experiment decide acme/support --auto",
            "loragate experiment decide acme/support --promote new",
        ),
    )(decide)
    app.add_typer(
        experiment, name="experiment", epilog=examples(f"{begin} --gate 'rating>=champion-0.1'")
    )


def start(
    adapter: Adapter,
    arm: Annotated[
        list[str],
        typer.Option(
            "--arm",
            metavar="NAME=VERSION[+merged][:SHARE]",
            help="An arm, such as champion=v3:50%, merged=v3+merged:50% or plain=base:50%. One is "
            "called champion; without shares all get the same.",
        ),
    ],
    gate: Gates = None,
    alpha: Alpha = 0.05,
    values: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many answers of a user count.")
    ] = 5,
    shadow: Shadow = "0%",  # pyright: ignore[reportArgumentType]  the parser's input
    auto: Annotated[
        bool, typer.Option("--auto", help="Promote or roll back by the verdict.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Hold arms side by side with fixed shares; the gates say what an arm has to show."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.trial_views import ExperimentRequest
    from loragate.server.admin_client.interface import open_admin

    body = ExperimentRequest(
        arms=tuple(arm),
        gates=tuple(gate or ()),
        alpha=alpha,
        values=values,
        shadow=shadow,
        automatic=auto,
    )
    with open_admin(url, key) as admin:
        begun = admin.start_experiment(AdapterName.parse(adapter), body)
    say_begun(begun, "experiment report", as_json)


def decide(
    adapter: Adapter,
    promote: Annotated[
        str | None, typer.Option("--promote", metavar="ARM", help="Make this arm the champion.")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Keep the champion.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="As the verdict says, if there is one.")] = (
        False
    ),
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """End an experiment with a winner, by its verdict or by hand."""
    if (promote is not None) + rollback + auto != 1:
        raise typer.BadParameter("say one of --promote ARM, --rollback and --auto.")
    change(
        "experiment",
        adapter,
        "promote" if promote is not None else "rollback" if rollback else "decide",
        arm=promote or "",
        reason=reason,
        as_json=as_json,
        url=url,
        key=key,
    )
