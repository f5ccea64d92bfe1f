"""The command line, `loragate`: one file per noun, put together here.

What a command needs beyond the options is imported inside it, so that `--help` and shell
completion answer at once.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer.main import get_command

from loragate.adapters.errors import LoragateError
from loragate.server.cli import adapters as cli_adapters
from loragate.server.cli import chat as cli_chat
from loragate.server.cli import compare as cli_compare
from loragate.server.cli import doctor as cli_doctor
from loragate.server.cli import experiments as cli_experiments
from loragate.server.cli import keys as cli_keys
from loragate.server.cli import model as cli_model
from loragate.server.cli import registry as cli_registry
from loragate.server.cli import rollouts as cli_rollouts
from loragate.server.cli import serve as cli_serve
from loragate.server.cli import tenants as cli_tenants
from loragate.server.cli import usage as cli_usage
from loragate.server.cli.options import examples


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"loragate {version('loragate')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and end."
        ),
    ] = False,
) -> None:
    """One base model in memory, many LoRA adapters on top, served per tenant."""


def build() -> typer.Typer:
    """The whole application, with the commands of other packages."""
    app = _own_commands()
    _add_plugins(app)
    return app


def _own_commands() -> typer.Typer:
    app = typer.Typer(
        name="loragate",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(
        epilog=examples(
            "loragate model prepare",
            "loragate tenant create acme",
            "loragate adapter publish acme/support ./support --promote",
            "loragate serve",
            "loragate chat acme/support",
        )
    )(_root)
    cli_serve.add_to(app)
    cli_chat.add_to(app)
    cli_tenants.add_to(app)
    cli_keys.add_to(app)
    cli_adapters.add_to(app)
    cli_rollouts.add_to(app)
    cli_experiments.add_to(app)
    cli_model.add_to(app)
    cli_compare.add_to(app)
    cli_usage.add_to(app)
    cli_registry.add_to(app)
    cli_doctor.add_to(app)
    return app


def _add_plugins(app: typer.Typer) -> None:
    """The trainer's commands, of which the server knows nothing."""
    from importlib.metadata import entry_points

    for plugin in entry_points(group="loragate.commands"):
        try:
            add_to = plugin.load()
        except ModuleNotFoundError as error:
            add_to = _tell_what_is_missing(plugin.name, error.name or "a package")
        add_to(app)


def _application(arguments: Sequence[str]) -> typer.Typer:
    """Without the commands of other packages where one of our own is asked for: to look for them
    takes an eighth of the processor's time that asking the registry does.
    """
    app = _own_commands()
    own = {each.name for each in (*app.registered_groups, *app.registered_commands)}
    if not arguments or arguments[0] not in own:
        _add_plugins(app)
    return app


def _tell_what_is_missing(command: str, package: str) -> Callable[[typer.Typer], None]:
    def run() -> None:
        raise LoragateError(
            f"'loragate {command}' needs {package}; install it with pip install 'loragate[train]'"
        )

    run.__doc__ = f"Needs {package}: pip install 'loragate[train]'."
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return lambda app: app.command(command, context_settings=settings)(run) and None


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends the process: 0 on success, 1 with one sentence on stderr, 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        get_command(_application(arguments)).main(arguments, prog_name="loragate")
    except LoragateError as error:
        typer.echo(f"loragate: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
