"""`loragate publish`: a trained run becomes a version in the registry."""

from pathlib import Path
from typing import Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json


def add_to(app: typer.Typer) -> None:
    app.command(
        "publish",
        epilog=examples(
            "loragate publish runs/support",
            "loragate publish support.toml",
            "loragate publish runs/support-sweep",
            "loragate publish runs/support --adapter acme/support",
        ),
    )(publish)


def publish(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, a sweep's (its best run), or the TOML that a run was made of.",
        ),
    ],
    adapter: Annotated[
        str,
        typer.Option(metavar="TENANT/ADAPTER", help="Instead of what [publish] adapter says."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Publish a trained run, as `loragate train` does at its end.

    For a run that was trained with --only-train, for the best run of a sweep, and after a publish
    that failed. Given the run file, its [evaluation] and [publish] count as they are now. The run
    is evaluated if it was not yet, and published if the measurements hold what [evaluation]
    requires; else this ends with 1. What is published already is not published again.
    """
    from rich.console import Console

    from loragate.trainer.cli.evaluate import say_evaluation
    from loragate.trainer.cli.progress import progress_bar, silence_libraries

    silence_libraries()  # before they are imported: some print when they are

    from loragate.adapters.home import Home
    from loragate.trainer.pipeline.checks import require_sound
    from loragate.trainer.pipeline.pipeline import evaluated, finished, publish
    from loragate.trainer.publishing.publishing import with_adapter

    console = Console(stderr=True, highlight=False)
    with progress_bar(console, is_hidden=as_json) as progress:
        trained = finished(run, Home.from_environment(), progress, console.print)
        if adapter:
            with_adapter(trained.folder, adapter)
        resolved = trained.resolved()
        require_sound(resolved, publishes=True)
        found = evaluated(trained)
        if not as_json:
            say_evaluation(found, trained.folder, Console(highlight=False))
        version: str | None = None
        if found.requirements.holds:
            published = publish(trained, found)
            version = str(published.version)
            console.print(f"Published {version}.")
            if published.merged:
                console.print(f"Merged {version}: {published.merged.report.sentence}")
    if as_json:
        print_json(
            {
                "folder": str(trained.folder.root),
                "holds": found.requirements.holds,
                "requirements": found.requirements.sentence,
                "version": version,
            }
        )
    if version is None:
        raise typer.Exit(1)
