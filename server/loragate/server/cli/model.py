"""`loragate model`: the base model on disk."""

from typing import Annotated

import typer

from loragate.server.cli.options import Json, examples
from loragate.server.cli.output import print_json, say


def add_to(app: typer.Typer) -> None:
    model = typer.Typer(no_args_is_help=True, help="Prepare the base model.")
    model.command(
        "prepare",
        epilog=examples(
            "loragate model prepare",
            "loragate model prepare --model Qwen/Qwen3-0.6B",
            "loragate model prepare --model ./my-model --json",
        ),
    )(prepare)
    app.add_typer(model, name="model", epilog=examples("loragate model prepare"))


def prepare(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="A folder with safetensors, a hub id, or a built-in name; "
            "by default the configured model.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the base model and make it ready to serve.

    A second run does nothing; an interrupted one starts clean.
    """
    from rich.console import Console
    from rich.progress import Progress

    from loragate.adapters.base_models.preparation import prepare as prepare_model
    from loragate.adapters.home import Home
    from loragate.server.config import load_config

    source = model or load_config(None).engine.model
    home = Home.from_environment()
    home.ensure()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        ready = prepare_model(source, home.models, progress)
    if as_json:
        print_json({"model": ready.name, "path": str(ready.path), "digest": ready.digest})
        return
    say(
        "[green]Ready[/]: base model [bold]{name}[/] in {path}\n[dim]{digest}[/]",
        name=ready.name,
        path=str(ready.path),
        digest=ready.digest,
    )
