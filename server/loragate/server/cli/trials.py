"""`loragate rollout` and `loragate experiment`: roll out and compare."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loragate.server.cli.options import Adapter, AdminKey, Json, Reason, Url, examples
from loragate.server.cli.output import (
    console,
    print_json,
    print_table,
    print_view,
    print_views,
    say,
    when,
)

if TYPE_CHECKING:
    from loragate.server.admin.trial_views import ReportView, TrialView

Kind = Literal["rollout", "experiment"]
_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="GATE",
        help="What must hold, such as error_rate<1%, ttft_p95<1.2x or rating>=champion-0.1; "
        "may be given several times.",
    ),
]
Alpha = Annotated[
    float, typer.Option(metavar="P", help="The probability of a wrong verdict, either way.")
]
Tenant = Annotated[
    str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant's adapters.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one page, too.")
]


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no percentage; write 5%.") from None


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"'{text}' is no time; write 30s, 10m, 2h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


Shadow = Annotated[
    float,
    typer.Option(
        "--shadow",
        metavar="SHARE",
        parser=_percent,
        help="Of the requests, also answered by another arm, to compare; such as 5%.",
    ),
]


def add_to(app: typer.Typer) -> None:
    rollout = typer.Typer(
        no_args_is_help=True, help="Move requests to a new version, step by step."
    )
    start = "loragate rollout start acme/support --to v4 --steps 1,10,50,100 --every 10m"
    gates = "--gate 'error_rate<1%' --gate 'ttft_p95<1.2x' --gate 'rating>=champion-0.1'"
    rollout.command("start", epilog=examples(f"{start} {gates}"))(start_rollout)
    rollout.command("status", epilog=examples("loragate rollout status acme/support"))(
        rollout_status
    )
    rollout.command("list", epilog=examples("loragate rollout list"))(list_rollouts)
    for action in (pause, resume, abort):
        name = action.__name__
        rollout.command(name, epilog=examples(f"loragate rollout {name} acme/support"))(action)
    app.add_typer(rollout, name="rollout", epilog=examples(f"{start} --gate 'error_rate<1%'"))

    experiment = typer.Typer(no_args_is_help=True, help="Find out which of several arms is better.")
    start = "loragate experiment start acme/support --arm champion=v3:50% --arm new=v4:50%"
    experiment.command("start", epilog=examples(f"{start} --gate 'rating>=champion-0.1' --auto"))(
        start_experiment
    )
    experiment.command(
        "report",
        epilog=examples(
            "loragate experiment report acme/support",
            "loragate experiment report acme/support --html report.html",
        ),
    )(experiment_report)
    experiment.command("list", epilog=examples("loragate experiment list"))(list_experiments)
    experiment.command("stop", epilog=examples("loragate experiment stop acme/support"))(
        stop_experiment
    )
    experiment.command("resume", epilog=examples("loragate experiment resume acme/support"))(
        resume_experiment
    )
    experiment.command(
        "decide",
        epilog=examples(
            "loragate experiment decide acme/support --auto",
            "loragate experiment decide acme/support --promote new",
        ),
    )(decide)
    app.add_typer(
        experiment, name="experiment", epilog=examples(f"{start} --gate 'rating>=champion-0.1'")
    )


def start_rollout(
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
    from loragate.server.admin.port import open_admin
    from loragate.server.admin.trial_views import RolloutRequest

    shares = [_percent(step) for step in steps.split(",")]
    body = RolloutRequest(
        to=to,
        steps=tuple(share * 100 for share in shares),
        every_seconds=every,
        gates=tuple(gate or ()),
        alpha=alpha,
        shadow=shadow,
        merged=merged,
    )
    with open_admin(url, key) as admin:
        begun = admin.start_rollout(AdapterName.parse(adapter), body)
    _tell(begun, as_json, "[green]Began[/]")
    if not as_json:
        say("[dim]See how it goes: loragate rollout status {adapter}[/]", adapter=adapter)


def rollout_status(
    adapter: Adapter,
    html: Html = None,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Show the adapter's rollout: its step, its figures, and what is missing."""
    _report("rollout", adapter, html, as_json, url, key)


def experiment_report(
    adapter: Adapter,
    html: Html = None,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Show the adapter's experiment: its arms, its figures, and what may be concluded."""
    _report("experiment", adapter, html, as_json, url, key)


def list_rollouts(
    tenant: Tenant = None, as_json: Json = False, url: Url = None, key: AdminKey = None
) -> None:
    """List rollouts, newest first."""
    _list("rollout", tenant, as_json, url, key)


def list_experiments(
    tenant: Tenant = None, as_json: Json = False, url: Url = None, key: AdminKey = None
) -> None:
    """List experiments, newest first."""
    _list("experiment", tenant, as_json, url, key)


def pause(
    adapter: Adapter,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Hold the share where it is; a gate that fails still takes everybody back."""
    _change("rollout", adapter, "pause", "", reason, as_json, url, key)


def resume(
    adapter: Adapter,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Go on from where it was paused."""
    _change("rollout", adapter, "resume", "", reason, as_json, url, key)


def abort(
    adapter: Adapter,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """End it without a verdict; the champion answers everybody again."""
    _change("rollout", adapter, "abort", "", reason, as_json, url, key)


def stop_experiment(
    adapter: Adapter,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """End it without a verdict; the champion answers everybody again."""
    _change("experiment", adapter, "abort", "", reason, as_json, url, key)


def resume_experiment(
    adapter: Adapter,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Go on after an arm that could not answer has been mended."""
    _change("experiment", adapter, "resume", "", reason, as_json, url, key)


def start_experiment(
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
    shadow: Shadow = "0%",  # pyright: ignore[reportArgumentType]
    auto: Annotated[
        bool, typer.Option("--auto", help="Promote or roll back by the verdict.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Hold arms side by side with fixed shares; the gates say what an arm has to show."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.port import open_admin
    from loragate.server.admin.trial_views import ExperimentRequest

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
    _tell(begun, as_json, "[green]Began[/]")
    if not as_json:
        say("[dim]See how it goes: loragate experiment report {adapter}[/]", adapter=adapter)


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
    action = "promote" if promote is not None else "rollback" if rollback else "decide"
    _change("experiment", adapter, action, promote or "", reason, as_json, url, key)


def _change(
    kind: Kind,
    adapter: str,
    action: Literal["pause", "resume", "abort", "promote", "rollback", "decide"],
    arm: str,
    reason: str,
    as_json: bool,
    url: str | None,
    key: str | None,
) -> None:
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.port import open_admin
    from loragate.server.admin.trial_views import TrialChange

    with open_admin(url, key) as admin:
        body = TrialChange(action=action, arm=arm, kind=kind, reason=reason)
        moved = admin.change_trial(AdapterName.parse(adapter), body)
    _tell(moved, as_json, "")


def _tell(trial: "TrialView", as_json: bool, verb: str) -> None:
    if as_json:
        print_view(trial)
        return
    say(
        f"{verb} {{kind}} {{id}} of [bold]{{adapter}}[/]: {{state}}{{reason}}.".lstrip(),
        kind=trial.kind,
        id=str(trial.id),
        adapter=trial.adapter,
        state=trial.state,
        reason=f" ({trial.reason})" if trial.reason else "",
    )


def _report(
    kind: Kind, adapter: str, html: Path | None, as_json: bool, url: str | None, key: str | None
) -> None:
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.port import open_admin

    with open_admin(url, key) as admin:
        report = admin.trial_report(AdapterName.parse(adapter), kind)
    if html is not None:
        _write(html, report)
    if as_json:
        print_json(report.model_dump(mode="json", exclude={"text", "html"}))
        return
    from rich.text import Text

    console().print(Text.from_ansi(report.text))
    if html is not None:
        say("The report is in [bold]{html}[/].", html=str(html))


def _write(html: Path, report: "ReportView") -> None:
    from loragate.adapters.errors import LoragateError

    try:
        html.write_text(report.html, encoding="utf-8")
    except OSError as error:
        raise LoragateError(f"{html} cannot be written: {error.strerror}") from None


def _list(kind: Kind, tenant: str | None, as_json: bool, url: str | None, key: str | None) -> None:
    from loragate.server.admin.port import open_admin

    with open_admin(url, key) as admin:
        trials = admin.trials(tenant, kind)
    if as_json:
        print_views(trials)
        return
    print_table(
        ("No.", "Adapter", "State", "Arms", "Why", "Began", "Ended"),
        (
            (
                str(trial.id),
                trial.adapter,
                trial.state,
                ", ".join(f"{arm.name} {arm.share:.3g}" for arm in trial.arms),
                trial.reason,
                when(trial.created_at),
                when(trial.ended_at),
            )
            for trial in trials
        ),
        empty=f"No {kind}s yet: begin one with `loragate {kind} start`.",
    )
