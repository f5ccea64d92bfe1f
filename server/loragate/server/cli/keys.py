"""`loragate key`: the keys that tenants call with."""

from typing import Annotated

import typer

from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.server.cli.options import AdminKey, After, Json, Limit, Tenant, Url, examples, text_of
from loragate.server.cli.output import (
    name_next,
    print_json,
    print_table,
    print_view,
    print_views,
    say,
    when,
)


def add_to(app: typer.Typer) -> None:
    key = typer.Typer(no_args_is_help=True, help="Create, list and revoke a tenant's keys.")
    key.command(
        "create",
        epilog=examples(
            "loragate key create acme",
            'loragate key create acme --name "billing service" --json',
        ),
    )(create)
    key.command("list", epilog=examples("loragate key list acme"))(list_keys)
    key.command("revoke", epilog=examples("loragate key revoke lg-abcd2345"))(revoke)
    app.add_typer(key, name="key", epilog=examples("loragate key create acme"))


def create(
    tenant: Tenant,
    name: Annotated[
        str,
        typer.Option(metavar="TEXT", callback=text_of(100), help="A name to know the key by."),
    ] = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Create a further key for a tenant; it is shown this once."""
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        made = admin.create_key(tenant, name)
    if as_json:
        print_view(made, "key")
        return
    say("A new key for tenant [bold]{tenant}[/], shown this once:\n", tenant=tenant)
    say("  [bold]{key}[/]\n", key=made.key)
    say("[dim]To withdraw it: loragate key revoke {id}[/]", id=made.id)


def list_keys(
    tenant: Tenant,
    limit: Limit = MOST_ROWS,
    after: After = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """List a tenant's keys by their public ids."""
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        keys = admin.list_keys(tenant, Page(limit, after))
    name_next(keys, limit, lambda row: row.id)
    if as_json:
        print_views(keys)
        return
    print_table(
        ("Key", "Name", "Created", "Revoked"),
        ((found.id, found.name, when(found.created_at), when(found.revoked_at)) for found in keys),
        empty=f"Tenant {tenant} has no keys: make one with `loragate key create {tenant}`.",
    )


def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="KEY-ID", help="The key's public id, such as lg-abcd2345.")
    ],
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Revoke a key: running servers refuse it within a second."""
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        admin.revoke_key(key_id)
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        say("[green]Revoked[/] key [bold]{id}[/].", id=key_id)
