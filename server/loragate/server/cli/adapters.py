"""`loragate adapter`: publish versions and say which of them serves."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.server.cli.options import Adapter, AdminKey, Json, Reason, Url, Version, examples
from loragate.server.cli.output import (
    print_json,
    print_table,
    print_view,
    print_views,
    say,
    short,
    size,
    when,
)

if TYPE_CHECKING:
    from loragate.server.admin.views import AdapterPageView, AuditView, PublishedView, VersionView

CHAMPION = "champion"


def add_to(app: typer.Typer) -> None:
    adapter = typer.Typer(no_args_is_help=True, help="Publish adapters and choose what serves.")
    adapter.command(
        "publish",
        epilog=examples(
            "loragate adapter publish acme/support ./support",
            "loragate adapter publish acme/support ./support --promote --json",
        ),
    )(publish)
    adapter.command(
        "list", epilog=examples("loragate adapter list", "loragate adapter list acme --json")
    )(list_adapters)
    adapter.command("show", epilog=examples("loragate adapter show acme/support"))(show)
    adapter.command(
        "promote",
        epilog=examples('loragate adapter promote acme/support v2 --reason "better on refunds"'),
    )(promote)
    adapter.command("rollback", epilog=examples("loragate adapter rollback acme/support"))(rollback)
    adapter.command("retire", epilog=examples("loragate adapter retire acme/support v1"))(retire)
    adapter.command(
        "alias",
        epilog=examples(
            "loragate adapter alias acme/support challenger v3",
            "loragate adapter alias acme/support challenger --delete",
        ),
    )(alias)
    app.add_typer(
        adapter,
        name="adapter",
        epilog=examples("loragate adapter publish acme/support ./support --promote"),
    )


def publish(
    adapter: Adapter,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Holds adapter_config.json and adapter_model.safetensors (PEFT)."
        ),
    ],
    promote: Annotated[
        bool, typer.Option("--promote", help="Let the new version serve at once.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Publish a folder as the adapter's next version.

    A version never changes again. The newest one is returned where the folder is the same.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin.port import open_admin

    name = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        published = admin.publish(name, folder)
        if promote:
            admin.set_alias(name, CHAMPION, parse_version(published.version), "promoted on publish")
    if as_json:
        print_view(published)
        return
    _say_version("[green]Published[/]", published)
    if promote:
        say("It serves as [bold]{name}[/] now.", name=adapter)
    else:
        say(
            "[dim]Let it serve: loragate adapter promote {adapter} {version}[/]",
            adapter=adapter,
            version=published.version,
        )


def list_adapters(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant's adapters.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """List the adapters, and which version of each serves."""
    from loragate.server.admin.port import open_admin

    with open_admin(url, key) as admin:
        adapters = admin.adapters(tenant)
    if as_json:
        print_views(adapters)
        return
    print_table(
        ("Adapter", "Serves", "Other aliases", "Versions"),
        (
            (
                adapter.adapter,
                adapter.aliases.get(CHAMPION, "nothing yet"),
                ", ".join(
                    f"{alias} → {version}"
                    for alias, version in adapter.aliases.items()
                    if alias != CHAMPION
                ),
                " ".join(adapter.versions),
            )
            for adapter in adapters
        ),
        empty="No adapters yet: publish one with `loragate adapter publish acme/support DIR`.",
    )


def show(adapter: Adapter, as_json: Json = False, url: Url = None, key: AdminKey = None) -> None:
    """Show what serves, all versions, and the last changes."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.port import open_admin

    name = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        page = admin.show(name)
    if as_json:
        print_view(page)
        return
    _say_what_serves(page)
    _print_versions(page.versions)
    _print_audit(page.audit)


def promote(
    adapter: Adapter,
    version: Version,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Let a version serve.

    It becomes the adapter's champion: requests by the adapter's plain name go to it.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin.port import open_admin

    name, number = AdapterName.parse(adapter), parse_version(version)
    with open_admin(url, key) as admin:
        promoted = admin.set_alias(name, CHAMPION, number, reason)
    if as_json:
        print_view(promoted)
    else:
        _say_version("[green]Promoted[/]", promoted)


def rollback(
    adapter: Adapter, as_json: Json = False, url: Url = None, key: AdminKey = None
) -> None:
    """Let the version serve that served before."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.port import open_admin

    name = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        restored = admin.rollback(name)
    if as_json:
        print_view(restored)
    else:
        _say_version("[green]Rolled back[/] to", restored)


def retire(
    adapter: Adapter,
    version: Version,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Take a version out of service for good.

    Refused while an alias points to it.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin.port import open_admin

    name, number = AdapterName.parse(adapter), parse_version(version)
    with open_admin(url, key) as admin:
        admin.retire(name, number)
    if as_json:
        print_json({"adapter": adapter, "version": version, "state": "RETIRED"})
    else:
        say("[green]Retired[/] [bold]{version}[/].", version=f"{adapter}@{version}")


def alias(
    adapter: Adapter,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as challenger.")],
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Where it points, such as v3.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias instead.")] = False,
    reason: Reason = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Point an alias to a version, or delete the alias.

    Callers reach the version as ADAPTER@ALIAS.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin.port import open_admin

    if delete == (version is not None):
        raise typer.BadParameter("give either the version that the alias points to, or --delete.")
    target = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        if version is None:
            admin.delete_alias(target, name)
            _say_alias_deleted(adapter, name, as_json)
        else:
            pointed = admin.set_alias(target, name, parse_version(version), reason)
            _say_alias_set(pointed, name, as_json)


def _say_alias_deleted(adapter: str, name: str, as_json: bool) -> None:
    if as_json:
        print_json({"adapter": adapter, "alias": name, "deleted": True})
    else:
        say("[green]Deleted[/] alias [bold]{alias}[/].", alias=f"{adapter}@{name}")


def _say_alias_set(pointed: "PublishedView", name: str, as_json: bool) -> None:
    if as_json:
        print_view(pointed)
    else:
        _say_version(f"[bold]{name}[/] is now", pointed)


def _say_version(what: str, version: "PublishedView") -> None:
    say(
        what + " [bold]{version}[/] [dim]{digest}[/]",
        version=f"{version.adapter}@{version.version}",
        digest=short(version.digest),
    )


def _say_what_serves(page: "AdapterPageView") -> None:
    champion = page.aliases.get(CHAMPION)
    if champion is None:
        newest = page.versions[0].version if page.versions else "v1"
        say(
            "[bold]{adapter}[/]: no version serves yet; choose one with "
            "`loragate adapter promote {adapter} {newest}`.",
            adapter=page.adapter,
            newest=newest,
        )
    else:
        say(
            "[bold]{adapter}[/]: [green]{champion} serves[/] (its champion).",
            adapter=page.adapter,
            champion=champion,
        )


def _print_versions(versions: "Iterable[VersionView]") -> None:
    print_table(
        ("Version", "State", "Aliases", "Rank", "Size", "Digest", "Published"),
        (
            (
                version.version,
                version.state,
                ", ".join(version.aliases),
                str(version.rank),
                size(version.size_bytes),
                short(version.digest),
                when(version.created_at),
            )
            for version in versions
        ),
        empty="It has no versions.",
    )


def _print_audit(rows: "Iterable[AuditView]") -> None:
    print_table(
        ("When", "Who", "What", "Alias", "From", "To", "Reason"),
        (
            (
                when(row.at),
                row.actor,
                row.action,
                row.subject.partition("@")[2],
                row.from_version or "",
                row.to_version or "",
                row.reason,
            )
            for row in rows
        ),
        empty="Nothing was changed yet.",
    )
