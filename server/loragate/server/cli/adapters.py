"""`loragate adapter`: publish versions and say which of them serves."""

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.adapters.names import CHAMPION
from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.server.cli import merged as cli_merged
from loragate.server.cli.adapter_page import print_page
from loragate.server.cli.options import (
    Adapter,
    AdminKey,
    After,
    Json,
    Limit,
    Reason,
    Url,
    Version,
    examples,
)
from loragate.server.cli.output import (
    name_next,
    print_json,
    print_table,
    print_view,
    print_views,
    say,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loragate.adapters.importing.importing import Imported
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.views import AdapterPageView, AdapterView, PublishedView

Wait = Annotated[
    bool, typer.Option("--wait", help="End only when the version serves, or cannot (exit 1).")
]
Selected = Annotated[
    str,
    typer.Argument(
        metavar="TENANT/ADAPTER[@ALIAS|@VERSION]",
        help="The version, such as acme/support@v2; without one, the champion.",
    ),
]
Chats = Annotated[
    Path | None,
    typer.Option(
        "--chats",
        metavar="FILE",
        help='Chats like those of the training, one {"messages": [...]} a line, for PEFT to score '
        "beside fixed ones; for an adapter that changes those little.",
    ),
]
Proof = Annotated[
    bool,
    typer.Option(
        "--proof/--no-proof",
        help="Have PEFT compute what the adapter says, for servers to compare; without it they "
        "check only that it changes something.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long --wait waits.")
]


def add_to(app: typer.Typer) -> None:
    adapter = typer.Typer(no_args_is_help=True, help="Publish adapters and choose what serves.")
    adapter.command(
        "publish",
        epilog=examples(
            "loragate adapter publish acme/support ./support",
            "loragate adapter publish acme/support ./support --promote --json",
            "loragate adapter publish acme/support ./support --chats questions.jsonl",
        ),
    )(publish)
    adapter.command(
        "import",
        epilog=examples(
            "loragate adapter import ./out/checkpoint-500 acme/support",
            "loragate adapter import ./lora.gguf acme/support --promote",
            "loragate adapter import ./mlx-adapters --to ./support",
        ),
    )(import_adapter)
    adapter.command(
        "list", epilog=examples("loragate adapter list", "loragate adapter list acme --json")
    )(list_adapters)
    adapter.command("show", epilog=examples("loragate adapter show acme/support"))(show)
    adapter.command(
        "promote",
        epilog=examples(
            'loragate adapter promote acme/support v2 --reason "better on refunds"',
            "loragate adapter promote acme/support v2 --wait --timeout 60",
        ),
    )(promote)
    adapter.command("rollback", epilog=examples("loragate adapter rollback acme/support"))(rollback)
    adapter.command("retire", epilog=examples("loragate adapter retire acme/support v1"))(retire)
    adapter.command(
        "pin",
        epilog=examples(
            "loragate adapter pin acme/support", "loragate adapter pin acme/support@challenger"
        ),
    )(pin)
    adapter.command("unpin", epilog=examples("loragate adapter unpin acme/support@v2"))(unpin)
    adapter.command("collect", epilog=examples("loragate adapter collect"))(collect)
    adapter.command(
        "alias",
        epilog=examples(
            "loragate adapter alias acme/support challenger v3",
            "loragate adapter alias acme/support challenger --delete",
        ),
    )(alias)
    cli_merged.add_to(adapter)
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
            metavar="DIR",
            help="Holds adapter_config.json and adapter_model.safetensors (PEFT), or another "
            "layout that `adapter import` takes.",
        ),
    ],
    promote: Annotated[bool, typer.Option("--promote", help="Let the new version serve.")] = False,
    chats: Chats = None,
    proof: Proof = True,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Publish a folder as the adapter's next version.

    A version never changes again. The newest one is returned where the folder is the same. For an
    adapter that brings no reference of its own, PEFT computes in float32 what it says to a few
    prompts, and a server serves it only if it says the same.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin_client.interface import open_admin
    from loragate.server.admin_client.local import local_importer

    name = AdapterName.parse(adapter)
    with (
        local_importer().imported(folder) as imported,
        open_admin(url, key) as admin,
        _proved(imported, folder, chats, proof, as_json) as proved,
    ):
        if not as_json:
            _say_repairs(imported)
        published = admin.publish(name, proved)
        if promote:
            admin.set_alias(name, CHAMPION, parse_version(published.version), "promoted on publish")
        page = admin.show(name)
    if as_json:
        print_view(published)
        return
    _say_version("[green]Published[/]", published)
    if promote:
        _say_when_it_serves(page, published)
    else:
        say(
            "[dim]Let it serve: loragate adapter promote {adapter} {version}[/]",
            adapter=adapter,
            version=published.version,
        )


def import_adapter(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder or a file of PEFT, TRL, Axolotl, Unsloth, LLaMA-Factory, MLX, "
            "torchtune, kohya's, or a GGUF adapter of llama.cpp.",
        ),
    ],
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="[TENANT/ADAPTER]", help="Publish it as this adapter's next version."
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="Write what would be published into a new folder."
        ),
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Let the new version serve.")] = False,
    chats: Chats = None,
    proof: Proof = True,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Take an adapter that any trainer has written, repair it where that is exact, publish it.

    What is repaired changes no product: names, orders of rows, files. What would is refused, with
    what to do. Without TENANT/ADAPTER and --to it is only looked at; else PEFT computes what it
    says, as for `adapter publish`.
    """
    from loragate.adapters.importing.importing import copy_files
    from loragate.server.admin_client.local import local_importer

    if adapter is not None and to is None:
        publish(adapter, source, promote, chats, proof, as_json, url, key)
        return
    with local_importer().imported(source) as imported:
        if as_json:
            print_json(_repairs_as_json(imported))
        else:
            if not imported.repairs:
                say("Nothing to repair, in {layout} layout.", layout=imported.layout)
            _say_repairs(imported)
        if to is not None:
            with _proved(imported, source, chats, proof, as_json) as proved:
                copy_files(proved, to)
            say("[green]Written[/] to {folder}", folder=str(to))
    if adapter is not None and to is not None:
        publish(adapter, to, promote, None, proof, as_json, url, key)


@contextmanager
def _proved(
    imported: "Imported", source: Path, chats: Path | None, is_wanted: bool, is_quiet: bool
) -> "Iterator[Path]":
    """What to publish: with PEFT's answers, unless they are not wanted. Says how that went on
    standard error, where no script reads it.
    """
    from loragate.server.admin_client.local import local_prover

    if not is_wanted:
        yield imported.folder
        return
    with ExitStack() as stack:
        prover = local_prover()
        if not is_quiet and prover.will_compute(imported.folder, source, chats):
            with _spinner("PEFT computes in float32 what the adapter says; Ctrl-C ends it"):
                proved = stack.enter_context(prover.proved(imported.folder, source, chats))
        else:
            proved = stack.enter_context(prover.proved(imported.folder, source, chats))
        if proved.certificate is not None and not is_quiet:
            say("[dim]Proof: {proof}[/]", proof=proved.certificate.sentence)
        yield proved.folder


@contextmanager
def _spinner(what: str) -> "Iterator[None]":
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def _say_repairs(imported: "Imported") -> None:
    for repair in imported.repairs:
        say("[yellow]Repaired[/] {what} [dim]({why})[/]", what=repair.what, why=repair.why)
    for warning in imported.warnings:
        say("[yellow]Warning:[/] {warning}", warning=warning)
    if imported.left_out:
        names = ", ".join(f"{each.name} ({each.what})" for each in imported.left_out)
        say("[dim]Left out: {names}[/]", names=names)


def _repairs_as_json(imported: "Imported") -> dict[str, object]:
    return {
        "layout": imported.layout,
        "repairs": [{"what": each.what, "why": each.why} for each in imported.repairs],
        "left_out": [{"name": each.name, "what": each.what} for each in imported.left_out],
        "warnings": list(imported.warnings),
    }


def list_adapters(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only this tenant's adapters.")
    ] = None,
    limit: Limit = MOST_ROWS,
    after: After = "",
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """List the adapters, and which version of each serves."""
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        adapters = admin.adapters(tenant, Page(limit, after))
    name_next(adapters, limit, lambda row: row.adapter)
    if as_json:
        print_views(adapters)
        return
    print_table(
        ("Adapter", "Serves", "To serve", "Other aliases", "Versions"),
        (
            (
                adapter.adapter,
                adapter.serving.get(CHAMPION, "nothing yet"),
                _wanted(adapter),
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
    """Show what serves, what is on its way, what failed and why, and the last changes."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin_client.interface import open_admin

    name = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        page = admin.show(name)
    if as_json:
        print_view(page)
        return
    print_page(page)


def promote(
    adapter: Adapter,
    version: Version,
    merged: Annotated[
        bool,
        typer.Option("--merged", help="By its merged model, which has to be served already."),
    ] = False,
    reason: Reason = "",
    wait: Wait = False,
    timeout: Timeout = 60.0,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Let a version serve.

    It becomes the adapter's champion: requests by the adapter's plain name go to it as soon as a
    server has loaded and checked it, and to what serves now until then.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin_client.interface import open_admin
    from loragate.server.cli.waiting import wait_until_serving

    name, number = AdapterName.parse(adapter), parse_version(version)
    with open_admin(url, key) as admin:
        mode = "merged" if merged else "unmerged"
        promoted = admin.set_alias(name, CHAMPION, number, reason, mode)
        if wait:
            wait_until_serving(admin, name, CHAMPION, promoted.version, timeout)
        page = admin.show(name)
    if as_json:
        print_view(promoted)
    else:
        _say_version("[green]Promoted[/]", promoted)
        _say_when_it_serves(page, promoted)


def rollback(
    adapter: Adapter,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Let the version serve that served before."""
    from loragate.adapters.names import AdapterName
    from loragate.server.admin_client.interface import open_admin
    from loragate.server.cli.waiting import wait_until_serving

    name = AdapterName.parse(adapter)
    with open_admin(url, key) as admin:
        restored = admin.rollback(name)
        if wait:
            wait_until_serving(admin, name, CHAMPION, restored.version, timeout)
        page = admin.show(name)
    if as_json:
        print_view(restored)
    else:
        _say_version("[green]Rolled back[/] to", restored)
        _say_when_it_serves(page, restored)


def retire(
    adapter: Adapter,
    version: Version,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Take a version out of service for good.

    Refused while an alias points to it or is served by it. Where a server holds it, it gets no new
    requests and is retired once the last one has ended.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin_client.interface import open_admin

    name, number = AdapterName.parse(adapter), parse_version(version)
    with open_admin(url, key) as admin:
        admin.retire(name, number)
        page = admin.show(name)
    state = next(found.state for found in page.versions if found.version == version)
    if as_json:
        print_json({"adapter": adapter, "version": version, "state": state})
    elif state == "RETIRED":
        say("[green]Retired[/] [bold]{version}[/].", version=f"{adapter}@{version}")
    else:
        say(
            "[bold]{version}[/] gets no new requests; it is {state}, and retired once the server "
            "has let go of it.",
            version=f"{adapter}@{version}",
            state=state,
        )


def pin(adapter: Selected, as_json: Json = False, url: Url = None, key: AdminKey = None) -> None:
    """Keep a version loaded, however long nobody asks for it.

    The pin stays with the version, wherever its aliases go. A server loads it in the background,
    and again whenever it starts.
    """
    from loragate.server.admin_client.interface import open_admin

    name, selector = _selected(adapter)
    with open_admin(url, key) as admin:
        pinned = admin.pin(name, selector)
    if as_json:
        print_view(pinned)
        return
    _say_version("[green]Pinned[/]", pinned)
    say(
        "[dim]Whether the server has room for it: loragate adapter show {name}[/]",
        name=pinned.adapter,
    )


def unpin(adapter: Selected, as_json: Json = False, url: Url = None, key: AdminKey = None) -> None:
    """Let a pinned version be unloaded again, when others need its room."""
    from loragate.server.admin_client.interface import open_admin

    name, selector = _selected(adapter)
    with open_admin(url, key) as admin:
        freed = admin.unpin(name, selector)
    if as_json:
        print_view(freed)
    else:
        _say_version("[green]Unpinned[/]", freed)


def collect(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    unreferenced: Annotated[
        bool,
        typer.Option(
            "--unreferenced",
            help="Take all old files that no version of this registry refers to, however they came "
            "there. Only where no other registry keeps its files in the same folder.",
        ),
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Remove the files of retired versions, and of publications that were killed half-way.

    What a server may hold is left alone, and so are files that another version needs. The records
    stay, and so do the numbers. Files that no version refers to are taken once they are older than
    registry.orphans_after_seconds, a day by default; a server does that by itself.
    """
    from loragate.server.admin_client.interface import open_admin

    with open_admin(url, key) as admin:
        collected = admin.collect(is_dry_run=dry_run, unreferenced=unreferenced)
    if as_json:
        print_view(collected)
    elif not collected.collected:
        say("Nothing to remove: no retired version has files that no other needs.")
    done = "Would remove" if dry_run else "[green]Removed[/]"
    for digest in () if as_json else collected.collected:
        say(f"{done} [dim]{{digest}}[/]", digest=short(digest))


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

    Callers reach the version as ADAPTER@ALIAS as soon as a server has loaded and checked it.
    """
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin_client.interface import open_admin

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


def _selected(adapter: str) -> "tuple[AdapterName, str]":
    from loragate.adapters.names import AdapterName

    name, _, selector = adapter.partition("@")
    return AdapterName.parse(name), selector or CHAMPION


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


def _say_when_it_serves(page: "AdapterPageView", version: "PublishedView") -> None:
    if page.serving.get(CHAMPION) == version.version:
        say("It serves as [bold]{name}[/].", name=page.adapter)
    else:
        say(
            "It will serve as [bold]{name}[/] as soon as a server has loaded and checked it. "
            "[dim]See loragate adapter show {name}[/]",
            name=page.adapter,
        )


def _wanted(adapter: "AdapterView") -> str:
    """The champion to be, where another or none serves."""
    desired = adapter.aliases.get(CHAMPION, "")
    return "" if desired == adapter.serving.get(CHAMPION) else desired
