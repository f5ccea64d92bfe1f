"""`loragate serve`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.server.cli.options import ConfigFile, examples

if TYPE_CHECKING:
    from loragate.adapters.home import Home
    from loragate.server.app.server import Server
    from loragate.server.config import Config


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

    import uvloop

    from loragate.adapters.home import Home
    from loragate.server.app import serving
    from loragate.server.engine.vllm import forkserver
    from loragate.server.logs import configure_logs

    configure_logs(settings.server.log_level)
    forkserver.start_forkserver()  # imports for seconds, beside this process
    home = Home.from_environment().ensure()
    uvloop.run(serving.run(settings, home, partial(_make, settings, home)))


@asynccontextmanager
async def _make(settings: "Config", home: "Home") -> AsyncIterator["Server"]:
    from loragate.server.concurrency.daemon_threads import in_daemon_thread

    build = await in_daemon_thread(_import_build)  # probes are answered meanwhile
    async with build.build_from_settings(settings, home) as server:
        yield server


def _import_build() -> ModuleType:
    """Takes seconds, since the registry, both transports and transformers are imported with it."""
    from loragate.server.app import build

    return build
