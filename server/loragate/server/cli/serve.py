"""`loragate serve`."""

from typing import Annotated

import typer

from loragate.server.cli.options import ConfigFile, examples


def add_to(app: typer.Typer) -> None:
    app.command(
        "serve",
        epilog=examples(
            "loragate serve",
            "loragate serve --http 0.0.0.0:8000 --grpc 0.0.0.0:9000",
            "loragate serve --config loragate.toml --model Qwen/Qwen3-0.6B",
        ),
    )(serve)


def serve(
    config: ConfigFile = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where HTTP listens, by default 127.0.0.1:8000."),
    ] = None,
    grpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where gRPC listens, by default 127.0.0.1:9000."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The base model: a prepared name, a folder or a hub id."
        ),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
) -> None:
    """Serve the base model and all adapters over HTTP and gRPC.

    Ctrl-C or SIGTERM finishes what runs, then ends; a second one ends at once.
    """
    from loragate.server.config import load_config

    flags = {
        "server.http": http,
        "server.grpc": grpc,
        "engine.model": model,
        "server.log_level": log_level,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    settings = load_config(config, given)

    from loragate.server import vllm_start

    vllm_start.begin()  # before the next line, which imports for seconds itself
    from loragate.server.app import serve as run

    run(settings)
