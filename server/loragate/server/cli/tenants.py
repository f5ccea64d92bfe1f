"""`loragate tenant`: who is served, and how much each may use."""

from typing import Annotated

import typer

from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.server.cli.options import AdminKey, After, Json, Limit, Tenant, Url, examples
from loragate.server.cli.output import (
    name_next,
    print_json,
    print_table,
    print_view,
    print_views,
    say,
    when,
)

MOST = 2**31 - 1  # what the registry can keep
RequestsPerMinute = Annotated[
    int | None, typer.Option(min=1, max=MOST, metavar="N", help="Requests a minute.")
]
TokensPerMinute = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, metavar="N", help="Prompt and answer tokens a minute."),
]
MaxConcurrent = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, metavar="N", help="Requests running at the same time."),
]


def add_to(app: typer.Typer) -> None:
    tenant = typer.Typer(no_args_is_help=True, help="Create tenants and set their limits.")
    tenant.command(
        "create",
        epilog=examples(
            "loragate tenant create acme",
            "loragate tenant create acme --requests-per-minute 600 --json",
        ),
    )(create)
    tenant.command("list", epilog=examples("loragate tenant list"))(list_tenants)
    tenant.command(
        "limit",
        epilog=examples(
            "loragate tenant limit acme --tokens-per-minute 100000 --max-concurrent 8",
            "loragate tenant limit acme --reset",
        ),
    )(limit)
    tenant.command("delete", epilog=examples("loragate tenant delete acme --yes"))(delete)
    app.add_typer(tenant, name="tenant", epilog=examples("loragate tenant create acme"))


def create(
    tenant: Tenant,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_concurrent: MaxConcurrent = None,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Create a tenant; its first key is shown this once."""
    from loragate.adapters.registry.snapshot import Limits
    from loragate.server.admin_client.interface import open_admin

    limits = Limits(requests_per_minute, tokens_per_minute, max_concurrent)
    with open_admin(url, key) as admin:
        made = admin.create_tenant(tenant, limits)
    if as_json:
        print_view(made, "tenant", "key")
        return
    say("[green]Created[/] tenant [bold]{tenant}[/]. Its key, shown this once:\n", tenant=tenant)
    say("  [bold]{key}[/]\n", key=made.key)
    say("[dim]Next: loragate adapter publish {tenant}/NAME FOLDER --promote[/]", tenant=tenant)


def list_tenants(
    limit: Limit = MOST_ROWS,
    after: After = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """List the tenants and their limits."""
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        tenants = admin.list_tenants(Page(limit, after))
    name_next(tenants, limit, lambda row: row.tenant)
    if as_json:
        print_views(tenants)
        return
    print_table(
        ("Tenant", "Requests/min", "Tokens/min", "Concurrent", "Since"),
        (
            (
                tenant.tenant,
                _limit(tenant.limits.requests_per_minute),
                _limit(tenant.limits.tokens_per_minute),
                _limit(tenant.limits.max_concurrent),
                when(tenant.created_at),
            )
            for tenant in tenants
        ),
        empty="No tenants yet: create one with `loragate tenant create acme`.",
    )


def limit(
    tenant: Tenant,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_concurrent: MaxConcurrent = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="First forget all limits that were set for it.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Set a tenant's limits; what is not named stays as it is."""
    from loragate.server.admin.views import LimitsChange
    from loragate.server.admin_client.interface import open_admin

    options = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent": max_concurrent,
    }
    named = {name: value for name, value in options.items() if reset or value is not None}
    if not named:
        raise typer.BadParameter("name a limit to set, such as --requests-per-minute, or --reset.")
    with open_admin(url, key) as admin:
        changed = admin.set_limits(tenant, LimitsChange.model_validate(named))
    if as_json:
        print_view(changed)
        return
    say(
        "Tenant [bold]{tenant}[/] may use: {requests} requests/min, {tokens} tokens/min, "
        "{concurrent} at the same time.",
        tenant=tenant,
        requests=_limit(changed.limits.requests_per_minute),
        tokens=_limit(changed.limits.tokens_per_minute),
        concurrent=_limit(changed.limits.max_concurrent),
    )


def delete(
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Delete a tenant for good.

    Its keys stop working, its adapters are served no more, its id is never given again.
    """
    from loragate.server.admin_client.interface import open_admin

    if not yes:
        typer.confirm(f"Delete tenant {tenant}? This cannot be undone", abort=True, err=True)
    with open_admin(url, key) as admin:
        admin.delete_tenant(tenant)
    if as_json:
        print_json({"tenant": tenant, "deleted": True})
    else:
        say("[green]Deleted[/] tenant [bold]{tenant}[/].", tenant=tenant)


def _limit(value: int | None) -> str:
    return "default" if value is None else str(value)
