"""`loragate data preview`: what a run would learn, with the learnt tokens marked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from loragate.trainer.cli.options import Json, examples, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from loragate.trainer.training.preview import Preview, PreviewedRow

_LEARNT: Final = "bold green"
_BEGIN, _END = "⟦", "⟧"


def add_to(data: typer.Typer) -> None:
    data.command(
        "preview",
        epilog=examples(
            "loragate data preview run.toml",
            "loragate data preview run.toml --rows 10 | less",
        ),
    )(preview)


def preview(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many examples to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show what a run would learn: its first rows as the model will see them, the learnt part
    marked.

    The rows are put into the chat template as in training and serving. In a terminal the learnt
    part is green, elsewhere it stands between ⟦ and ⟧. All else is only read. Shows which template
    it is, with which variables, and which token ends an answer.

    Raw files are shown as they are read, before they are cleaned, unless the run has made splits of
    them. Writes nothing.
    """
    from rich.console import Console

    from loragate.trainer.cli.progress import progress_bar, silence_libraries

    silence_libraries()

    from loragate.adapters.home import Home
    from loragate.trainer.run.run import Run
    from loragate.trainer.training.preview import preview

    try:
        text = run.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{run} cannot be read: {error}", param_hint="RUN.toml") from None
    errors = Console(stderr=True, highlight=False)
    with progress_bar(errors, is_hidden=as_json) as progress:
        loaded = Run.load(run, text, Home.from_environment(), progress, errors.print)
        found = preview(loaded, rows)
    if as_json:
        print_json(found.to_json())
        return
    console = Console(highlight=False, soft_wrap=True)
    _show_head(console, found)
    for row in found.rows:
        _show_row(console, row)
    if any(row.refusal for row in found.rows):
        raise typer.Exit(1)


def _show_head(console: "Console", found: "Preview") -> None:
    from rich.text import Text

    variables = ", ".join(f"{name} = {value!r}" for name, value in found.variables.items())
    console.print(
        Text(f"Template: {found.template}" + (f", with {variables}" if variables else ""))
    )
    console.print(Text(f"An answer ends with: {', '.join(found.ends) or '(nothing is learnt)'}"))
    if found.stops:
        stops = ", ".join(found.stops)
        console.print(Text(f"The contract will stop at: {stops} (the model's settings do not)"))
    marks = "green" if console.is_terminal else f"between {_BEGIN} and {_END}"
    console.print(Text(f"Learnt is what is {marks}; all else is only read."))


def _show_row(console: "Console", row: "PreviewedRow") -> None:
    from rich.text import Text

    console.print()
    if row.refusal:
        console.print(Text(f"── {row.place}: cannot be learnt: {row.refusal}", style="red"))
        return
    lost = "; its reasoning is not learnt, since the template has no place for it"
    console.print(
        Text(
            f"── {row.place}: {row.tokens} tokens, {row.learnt} learnt"
            + (lost if row.lost_reasoning else ""),
            style="bold",
        )
    )
    shown = Text()
    for text, is_learnt in row.pieces:
        if console.is_terminal:
            shown.append(text, style=_LEARNT if is_learnt else "dim")
        else:
            shown.append(f"{_BEGIN}{text}{_END}" if is_learnt else text)
    console.print(shown)
