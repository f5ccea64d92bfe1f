"""`loragate compare`: a version beside its merged model, before any traffic."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.adapters.registry.clock import wall_clock
from loragate.server.cli.options import AdminKey, Json, Url, examples
from loragate.server.cli.output import console, print_json, say

if TYPE_CHECKING:
    from loragate.adapters.names import AdapterName
    from loragate.server.admin.views import EngineView, VersionView
    from loragate.server.admin_client.remote import RemoteAdmin
    from loragate.server.comparison.comparing import Comparison, Costs, Settings, Tell
    from loragate.server.comparison.prompts import Conversation

_START_SECONDS = 300.0


def add_to(app: typer.Typer) -> None:
    app.command(
        "compare",
        epilog=examples(
            "loragate compare acme/support@v3",
            "loragate compare acme/support@v3 --prompts prompts.jsonl --out compare.html",
        ),
    )(compare)


def compare(
    version: Annotated[
        str, typer.Argument(metavar="TENANT/ADAPTER@VERSION", help="Such as acme/support@v3.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Held-out prompts, one a line, text or JSON; else shipped ones."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The page; by default compare-….html.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer, at most.")] = 48,
    streams: Annotated[
        str, typer.Option(metavar="N,N", help="How many at once speed is measured with.")
    ] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="How often each speed is measured.")] = 3,
    as_json: Json = False,
    url: Url = None,
    key: AdminKey = None,
) -> None:
    """Compare a version with its merged model and the base: answers, speed, memory.

    The merged model is served for as long as this takes, made first where there is none. Asks the
    server that --url names, or one of its own on the registry in LORAGATE_HOME.
    """
    import asyncio

    from loragate.adapters.home import Home
    from loragate.adapters.names import AdapterName, parse_version
    from loragate.server.admin_client.interface import AdminKeyMissing
    from loragate.server.admin_client.remote import RemoteAdmin
    from loragate.server.comparison.comparing import Settings
    from loragate.server.comparison.own_server import own_server
    from loragate.server.comparison.prompts import read_prompts, shipped_prompts

    name, _, selector = version.partition("@")
    adapter, number = AdapterName.parse(name), parse_version(selector)
    asked = read_prompts(prompts) if prompts else shipped_prompts()
    settings = Settings(tokens=tokens, streams=_counts(streams), rounds=rounds)
    tell = _silence if as_json else _tell
    with ExitStack() as stack:
        if url is None:
            home = Home.from_environment()
            tell("starting a server")
            url, key = stack.enter_context(own_server(home)), home.admin_key()
        elif not key:
            raise AdminKeyMissing(
                f"The admin key of {url} is needed: set LORAGATE_ADMIN_KEY or pass --key."
            )
        admin = stack.enter_context(RemoteAdmin(url, key))
        stack.enter_context(_served_merged(admin, adapter, number, tell))
        made = admin.create_key(adapter.tenant, "compare")
        stack.callback(admin.revoke_key, made.id)
        memory = partial(_costs, admin, adapter, number)
        comparison = asyncio.run(_run(url, made.key, version, asked, settings, memory, tell))
    page = out or Path(f"compare-{adapter.tenant}-{adapter.name}-v{number}.html")
    _show(comparison, page, as_json)


async def _run(
    url: str,
    api_key: str,
    version: str,
    prompts: "Sequence[Conversation]",
    settings: "Settings",
    memory: "Callable[[], Costs]",
    tell: "Tell",
) -> "Comparison":
    from loragate.server.comparison.asking import ComparisonClient, Target
    from loragate.server.comparison.comparing import compare
    from loragate.server.core import BASE, MERGED

    name = version.partition("/")[2]
    targets = (
        Target("base", BASE),
        Target("unmerged", name, "unmerged"),
        Target("merged", f"{name}{MERGED}", "merged"),
    )
    async with ComparisonClient(url, api_key) as client:
        return await compare(client, version, targets, prompts, settings, memory, tell)


@contextmanager
def _served_merged(
    admin: "RemoteAdmin", adapter: "AdapterName", number: int, tell: "Tell"
) -> "Iterator[None]":
    """The version's merged model serves; if nobody had asked for that, until the end of this."""
    from loragate.server.cli.waiting import wait_until_merged

    merged = _version(admin, adapter, number).merged
    was_wanted = merged is not None and merged.wanted
    tell("starting the merged model" if merged and merged.size_bytes else "merging the version")
    version = admin.serve_merged(adapter, number).version
    try:
        wait_until_merged(admin, adapter, version, _START_SECONDS)
        yield
    finally:
        if not was_wanted:
            admin.stop_merged(adapter, number)


def _costs(admin: "RemoteAdmin", adapter: "AdapterName", number: int) -> "Costs":
    from loragate.server.core import MERGED

    adapter_bytes = _version(admin, adapter, number).size_bytes
    base, *others = admin.engines()
    merged = next(each for each in others if each.name == f"{adapter}@v{number}{MERGED}")
    return (
        (_held(base), "the base model's engine, which all tenants share"),
        (adapter_bytes, "the adapter's files; its engine is the base model's"),
        (_held(merged), "an engine for this version alone"),
    )


def _held(engine: "EngineView") -> int:
    return engine.memory_bytes or engine.budget_bytes


def _version(admin: "RemoteAdmin", adapter: "AdapterName", number: int) -> "VersionView":
    """Raises VersionNotFound."""
    from loragate.adapters.errors import VersionNotFound

    for found in admin.show(adapter).versions:
        if found.version == f"v{number}":
            return found
    raise VersionNotFound(adapter.tenant, adapter.name, f"v{number}")


def _counts(text: str) -> tuple[int, ...]:
    counts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in counts):
        raise typer.BadParameter("give counts of streams, as in 1,8.")
    return tuple(map(int, counts))


def _show(comparison: "Comparison", page: Path, as_json: bool) -> None:

    import msgspec

    from loragate.server.comparison.report import to_html, to_terminal

    made = wall_clock().strftime("%Y-%m-%d %H:%M")
    page.write_text(to_html(comparison, made), "utf-8")
    if as_json:
        print_json(
            {
                **msgspec.to_builtins(comparison),
                "recommendation": comparison.recommendation,
                "page": str(page),
            }
        )
        return
    console().print(to_terminal(comparison))
    say("The page with plots is [bold]{page}[/].", page=str(page))


def _tell(what: str) -> None:
    say("[dim]{what} …[/]", what=what)


def _silence(what: str) -> None:
    """Nothing but JSON is to be printed."""
