"""`loragate registry`: the registry's database, and what it keeps no longer."""

from typing import TYPE_CHECKING, Annotated

import typer

from loragate.adapters.registry.clock import wall_clock
from loragate.server.cli.options import ConfigFile, Json, examples
from loragate.server.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from datetime import datetime

    from loragate.adapters.registry.registry import Registry
    from loragate.adapters.registry.retention import Pruned, Retention

_KINDS = {
    "exposures": ("Exposures of ended trials", "observations_days"),
    "outcomes": ("Outcomes of ended trials", "observations_days"),
    "shadows": ("Shadow answers of ended trials", "observations_days"),
    "feedback": ("Feedback on these, and on other old requests", "observations_days, usage_days"),
    "usage": ("Usage records (their sums by day stay)", "usage_days"),
    "audit": ("Audit log (aliases' history stays)", "audit_days"),
}


def add_to(app: typer.Typer) -> None:
    registry = typer.Typer(no_args_is_help=True, help="Look after the registry's database.")
    registry.command(
        "prune",
        epilog=examples(
            "loragate registry prune --dry-run",
            "loragate registry prune",
            "loragate registry prune --config loragate.toml --json",
        ),
    )(prune)
    registry.callback()(_group)  # with one command alone, typer would leave out its name
    app.add_typer(registry, name="registry", epilog=examples("loragate registry prune --dry-run"))


def _group() -> None:
    pass


def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be deleted, and delete nothing.")
    ] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Delete what is kept no longer by [retention] in loragate.toml.

    By default: what rollouts and experiments saw of each request, 90 days after their end; usage
    records after 90 days, whose sums by day stay, so that `loragate usage` goes on counting them;
    the audit log after 400 days, but for the history of aliases, which a rollback needs. A trial
    under way loses nothing. 0 keeps a kind for ever.

    A running server does the same once a day, and may run meanwhile: rows go a thousand at a time,
    with pauses. Stopped with Ctrl-C, it goes on from there the next time. The database's file
    does not shrink: SQLite uses the room again for what comes.
    """

    import msgspec

    from loragate.adapters.home import Home
    from loragate.adapters.registry.registry import Registry
    from loragate.adapters.registry.retention import Retention
    from loragate.adapters.store import ArtifactStore
    from loragate.server.config import load_config

    home, settings = Home.from_environment().ensure(), load_config(config)
    retention = Retention(**msgspec.structs.asdict(settings.retention))
    url, now = settings.registry.url or home.database_url, wall_clock()
    with Registry(url, ArtifactStore(home.artifacts)) as registry:
        pruned = _prune(registry, retention, now, dry_run)
    kinds = {kind: getattr(pruned, kind) for kind in _KINDS}
    if as_json:
        print_json({"dry_run": dry_run, "rows": kinds})
        return
    days = msgspec.structs.asdict(settings.retention)
    print_table(
        ("Rows", "Kind", "Setting"),
        (
            (f"{kinds[kind]:,}", what, _setting(names, days))
            for kind, (what, names) in _KINDS.items()
        ),
        empty="",
    )
    if not pruned.rows:
        say("Nothing is older than retention in loragate.toml says.")
    elif dry_run:
        say("[dim]Nothing was deleted. To delete them: loragate registry prune[/]")
    else:
        say("[green]Deleted[/] {rows} rows.", rows=f"{pruned.rows:,}")


def _prune(
    registry: "Registry", retention: "Retention", now: "datetime", dry_run: bool
) -> "Pruned":
    """With a bar on stderr that is gone at the end."""
    import time

    from rich.console import Console
    from rich.progress import Progress

    from loragate.adapters.registry.retention import PAUSE_SECONDS, Pruned

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("counting rows", total=None)
        found = registry.retention.prunable(retention, now)
        if dry_run:
            return found
        progress.update(task, description="deleting rows", total=found.rows)
        pruned = Pruned()
        for step in registry.retention.prune(retention, now):
            pruned += step
            progress.advance(task, step.rows)
            time.sleep(PAUSE_SECONDS)  # for a server beside, which writes meanwhile
    return pruned


def _setting(names: str, days: dict[str, int]) -> str:
    return ", ".join(f"{name} = {days[name]}" for name in names.split(", "))
