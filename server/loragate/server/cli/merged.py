"""`loragate adapter merged` and `route`: merged models that serve, and who is sent to them."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loragate.adapters.names import CHAMPION
from loragate.server.cli.options import Adapter, AdminKey, Json, Reason, Url, examples
from loragate.server.cli.output import print_view, say

if TYPE_CHECKING:
    from loragate.adapters.names import AdapterName

_START_SECONDS = 300.0


def add_to(adapter: typer.Typer) -> None:
    """`adapter` is the group of commands for adapters."""
    adapter.command(
        "merged",
        epilog=examples(
            "loragate adapter merged acme/support@v3 --wait",
            "loragate adapter merged acme/support@v3 --stop",
        ),
    )(merged)
    adapter.command(
        "route",
        epilog=examples(
            "loragate adapter route acme/support merged",
            "loragate adapter route acme/support unmerged --alias challenger",
        ),
    )(route)


def merged(
    version: Annotated[
        str, typer.Argument(metavar="TENANT/ADAPTER@VERSION", help="Such as acme/support@v3.")
    ],
    stop: Annotated[bool, typer.Option("--stop", help="Serve it no longer.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="End only when it serves, or cannot (exit 1).")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long --wait waits.")
    ] = _START_SECONDS,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Serve a version's merged model by an engine of its own.

    The server makes the merged model where there is none. It costs a whole model of memory, and is
    refused where that is not free. Callers reach it as ADAPTER@VERSION+merged, or by a name whose
    route is merged.
    """
    from loragate.adapters.names import parse_version
    from loragate.server.admin_client.interface import open_admin
    from loragate.server.cli.waiting import wait_until_merged

    name, selector = _selected(version)
    number = parse_version(selector)
    with open_admin(url, key) as admin:
        if stop:
            found = admin.stop_merged(name, number)
        else:
            found = admin.serve_merged(name, number)
            if wait:
                wait_until_merged(admin, name, found.version, timeout)
    if as_json:
        print_view(found)
    elif stop:
        say("[green]Stopped[/]: the merged model of [bold]{version}[/].", version=version)
    elif wait:
        say("[bold]{version}[/] is [green]served merged[/].", version=version)
    else:
        say(
            "[bold]{version}[/] is to be served merged, as soon as a server has started an engine "
            "for it. [dim]See loragate adapter show {name}[/]",
            version=version,
            name=str(name),
        )


def route(
    adapter: Adapter,
    mode: Annotated[
        Literal["merged", "unmerged"],
        typer.Argument(metavar="MODE", help="merged or unmerged."),
    ],
    alias: Annotated[
        str, typer.Option("--alias", metavar="ALIAS", help="Whose requests, if not champion's.")
    ] = CHAMPION,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Say whether a name's requests go to the version, or to its merged model.

    Callers need not know: prompts and answers are the same, and x-loragate-mode says who answered.
    While the merged model cannot answer, the version does.
    """
    from loragate.adapters.errors import AliasNotFound
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin_client.interface import open_admin

    name = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        desired = admin.show(name).aliases.get(alias)
        if desired is None:
            raise AliasNotFound(name.tenant, name.name, alias)
        routed = admin.set_alias(name, alias, parse_version(desired), reason, mode)
    if as_json:
        print_view(routed)
    else:
        say(
            "Requests for [bold]{name}[/] go to {version} [green]{mode}[/].",
            name=adapter if alias == CHAMPION else f"{adapter}@{alias}",
            version=routed.version,
            mode=mode,
        )


def _selected(version: str) -> "tuple[AdapterName, str]":
    from loragate.adapters.names import AdapterName

    name, _, selector = version.partition("@")
    return AdapterName.parse(name), selector
