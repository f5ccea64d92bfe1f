"""What `loragate rollout` and `loragate experiment` share: options, and commands that are alike."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.server.cli.options import Adapter, AdminKey, After, Json, Limit, Reason, Url
from loragate.server.cli.output import (
    console,
    name_next,
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
Action = Literal["pause", "resume", "abort", "promote", "rollback", "decide"]


def percent(text: str) -> float:
    """`5%` as 0.05."""
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no percentage; write 5%.") from None


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
Shadow = Annotated[
    float,
    typer.Option(
        "--shadow",
        metavar="SHARE",
        parser=percent,
        help="Of the requests, also answered by another arm, to compare; such as 5%.",
    ),
]
_Tenant = Annotated[
    str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant's adapters.")
]
_Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one page, too.")
]


def changing(kind: Kind, action: Action) -> Callable[..., None]:
    """A command that moves the adapter's trial on."""

    def run(
        adapter: Adapter,
        reason: Reason = "",
        as_json: Json = False,
        url: Url = None,
        key: AdminKey = None,
    ) -> None:
        change(kind, adapter, action, reason=reason, as_json=as_json, url=url, key=key)

    return run


def reporting(kind: Kind) -> Callable[..., None]:
    """A command that shows the adapter's trial."""

    def run(
        adapter: Adapter,
        html: _Html = None,
        as_json: Json = False,
        url: Url = None,
        key: AdminKey = None,
    ) -> None:
        from loragate.adapters.names import AdapterName
        from loragate.server.admin_client.interface import open_admin

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

    return run


def listing(kind: Kind) -> Callable[..., None]:
    """A command that lists trials."""

    def run(
        tenant: _Tenant = None,
        limit: Limit = MOST_ROWS,
        after: After = "",
        as_json: Json = False,
        url: Url = None,
        key: AdminKey = None,
    ) -> None:
        from loragate.server.admin_client.interface import open_admin

        with open_admin(url, key) as admin:
            trials = admin.trials(tenant, kind, Page(limit, after))
        name_next(trials, limit, lambda row: str(row.id))
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

    return run


def change(
    kind: Kind,
    adapter: str,
    action: Action,
    *,
    arm: str = "",
    reason: str,
    as_json: bool,
    url: str | None,
    key: str | None,
) -> None:
    """Moves the adapter's trial on and says how it stands then."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.trial_views import TrialChange
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        body = TrialChange(action=action, arm=arm, kind=kind, reason=reason)
        moved = admin.change_trial(AdapterName.parse(adapter), body)
    if as_json:
        print_view(moved)
    else:
        _say_how_it_stands(moved)


def say_begun(trial: "TrialView", see: str, as_json: bool) -> None:
    """`see` is the command that shows how it goes."""
    if as_json:
        print_view(trial)
        return
    _say_how_it_stands(trial, "[green]Began[/] ")
    say("[dim]See how it goes: loragate {see} {adapter}[/]", see=see, adapter=trial.adapter)


def _say_how_it_stands(trial: "TrialView", verb: str = "") -> None:
    say(
        f"{verb}{{kind}} {{id}} of [bold]{{adapter}}[/]: {{state}}{{reason}}.",
        kind=trial.kind,
        id=str(trial.id),
        adapter=trial.adapter,
        state=trial.state,
        reason=f" ({trial.reason})" if trial.reason else "",
    )


def _write(html: Path, report: "ReportView") -> None:
    from loragate.adapters.errors import LoragateError

    try:
        html.write_text(report.html, encoding="utf-8")
    except OSError as error:
        raise LoragateError(f"{html} cannot be written: {error.strerror}") from None
