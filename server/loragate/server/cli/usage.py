"""`loragate usage`: who used how much."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.server.cli.options import AdminKey, After, Json, Limit, Url, examples
from loragate.server.cli.output import name_next, print_table, print_views

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add_to(app: typer.Typer) -> None:
    app.command(
        "usage",
        epilog=examples(
            "loragate usage",
            "loragate usage acme --since 24h",
            "loragate usage --since 2026-01-31 --json",
        ),
    )(usage)


def usage(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help="30m, 24h, 7d, or a date or time as in 2026-01-31 (UTC)."
        ),
    ] = None,
    limit: Limit = MOST_ROWS,
    after: After = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Sum up requests and tokens by tenant and adapter."""
    from loragate.server.admin_client.interface import open_admin

    start = None if since is None else _parse_since(since, wall_clock())
    with open_admin(url, key) as admin:
        totals = admin.usage(tenant, start, Page(limit, after))
    name_next(totals, limit, lambda row: f"{row.tenant}/{row.adapter}")
    if as_json:
        print_views(totals)
        return
    print_table(
        ("Tenant", "Adapter", "Requests", "Prompt tokens", "(cached)", "Answer tokens"),
        (
            (
                total.tenant,
                total.adapter,
                f"{total.requests:,}",
                f"{total.prompt_tokens:,}",
                f"{total.cached_tokens:,}",
                f"{total.completion_tokens:,}",
            )
            for total in totals
        ),
        empty="No requests were served in this time.",
    )


def _parse_since(text: str, now: datetime) -> datetime:
    """Raises BadParameter, which the command line shows as wrong usage."""
    try:
        if match := re.fullmatch(r"(\d+)([mhd])", text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        moment = datetime.fromisoformat(text)
        # Near the calendar's ends a moment may have no date in UTC.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"--since {text} is no time; write 30m, 24h, 7d or a date as in 2026-01-31."
        ) from None
