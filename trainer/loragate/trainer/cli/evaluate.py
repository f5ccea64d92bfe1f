"""`loragate evaluate`: compares a run's adapter with the base and the champion."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from loragate.trainer.evaluation.evaluation import Evaluation
    from loragate.trainer.run.folder import RunFolder
    from loragate.trainer.run.run import Run


def add_to(app: typer.Typer) -> None:
    app.command(
        "evaluate",
        epilog=examples(
            "loragate evaluate run",
            "loragate evaluate examples/train/support.toml --rubric",
            "loragate evaluate run --ratings ann.csv --ratings bob.csv",
            "loragate evaluate run.toml --judge",
            "loragate evaluate run --url http://127.0.0.1:8000 --key lg-… --new support@v3",
        ),
    )(evaluate)


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or the TOML that it was made of.")
    ],
    url: Annotated[
        str, typer.Option(metavar="URL", help="Ask this server instead of starting one.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            envvar="LORAGATE_API_KEY",
            show_envvar=True,
            help="The key of a tenant there. Better given by the environment.",
        ),
    ] = "",
    new: Annotated[
        str, typer.Option(metavar="MODEL", help="The new adapter's name there, as support@v3.")
    ] = "",
    champion: Annotated[
        str, typer.Option(metavar="MODEL", help="The name there of what serves now.")
    ] = "",
    rubric: Annotated[
        bool, typer.Option("--rubric", help="Also write a sheet for people to rate answers by.")
    ] = False,
    ratings: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CSV", help="Read a filled sheet into the report; one for each rater."
        ),
    ] = None,
    judge: Annotated[
        bool,
        typer.Option("--judge", help="Only ask the judges of [evaluation.judges] what is new."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a run's adapter on its unseen test rows.

    Base, current champion and new adapter answer side by side through a real server. The report is
    RUN/evaluation/report.html, the figures are in evaluation.json beside it. Ends with 1 where
    the run's requirements do not hold.

    --rubric writes evaluation/rubric.csv, for people who do not know whose answer is whose, of the
    evaluation that is there, or of a new one. --ratings reads filled copies into the report and
    checks the requirements again. Neither asks anything again. --judge has language models judge
    the answers that are there, and asks none of them twice.
    """
    import asyncio

    from rich.console import Console

    from loragate.trainer.cli.progress import progress_bar, silence_libraries

    silence_libraries()  # before they are imported: some print when they are

    from loragate.trainer.evaluation.evaluation import FILE, Evaluation
    from loragate.trainer.evaluation.rubric import with_ratings, write_sheet
    from loragate.trainer.pipeline.evaluating import (
        Remote,
        evaluate_run,
        judge_run,
        require_judges,
        write_evaluation,
    )

    if bool(url) != bool(new):
        raise typer.BadParameter("--url and --new belong together: which model is the new one?")
    folder = _run_folder(run)
    is_evaluated = (folder.evaluation / FILE).is_file()
    if judge and not url:
        with progress_bar(Console(stderr=True), is_hidden=as_json) as progress:
            trained = _finished(run, progress).resolved()
            require_judges(trained)
            folder = trained.folder
            found = asyncio.run(judge_run(trained, Evaluation.read(folder.evaluation)))
    elif ratings:
        found = with_ratings(Evaluation.read(folder.evaluation), ratings)
        write_evaluation(found, folder)
    elif rubric and is_evaluated and not url:
        found = Evaluation.read(folder.evaluation)
    else:
        remote = Remote(url, key, new, champion) if url else None
        with progress_bar(Console(stderr=True), is_hidden=as_json) as progress:
            trained = _finished(run, progress).resolved()
            folder = trained.folder
            found = asyncio.run(evaluate_run(trained, remote))
    sheet = folder.evaluation / "rubric.csv"
    if rubric:
        write_sheet(found, sheet)
    _say(found, folder, sheet if rubric else None, as_json)
    if not found.requirements.holds:
        raise typer.Exit(1)


def _finished(run: Path, progress: "Progress") -> "Run":
    """The run; given its file, the file's [evaluation] counts as it is now."""
    from loragate.adapters.home import Home
    from loragate.trainer.pipeline.pipeline import finished

    return finished(run, Home.from_environment(), progress, progress.console.print)


def _run_folder(run: Path) -> "RunFolder":
    from loragate.trainer.run.file import read_run_file
    from loragate.trainer.run.folder import RunFolder

    if run.is_dir():
        return RunFolder(run)
    return RunFolder(run.parent / read_run_file(run).folder)


def _say(found: "Evaluation", folder: "RunFolder", sheet: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "holds": found.requirements.holds,
                "requirements": found.requirements.sentence,
                "metrics": found.figures(),
                "report": str(folder.evaluation / "report.html"),
                "rubric": str(sheet) if sheet else None,
            }
        )
        return
    from rich.console import Console

    console = Console(highlight=False)
    say_evaluation(found, folder, console)
    if sheet:
        console.print(
            f"Sheet for raters: {sheet} (a copy for each; read back with --ratings)", soft_wrap=True
        )


def say_evaluation(found: "Evaluation", folder: "RunFolder", console: "Console") -> None:
    """The figures, what was required of them, and where the report is."""
    from loragate.trainer.evaluation.judge_trust import judge_sentences

    console.print(evaluation_table(found))
    for judge in found.judges:
        for sentence in judge_sentences(found, judge):
            console.print(sentence, soft_wrap=True, markup=False)
    for result in found.requirements.results:
        mark = "[green]✓[/]" if result.holds else "[red]✗[/]"
        console.print(f"{mark} {result.sentence}", soft_wrap=True)
    console.print(f"[bold]{found.requirements.sentence}[/]", soft_wrap=True)
    if found.caution:
        console.print(found.caution, soft_wrap=True)
    console.print(f"Report: {folder.evaluation / 'report.html'}", soft_wrap=True)


def evaluation_table(found: "Evaluation") -> "Table":
    """The figures side by side, for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Metric")
    for system in found.systems:
        table.add_column(system.title, justify="right")
    table.add_column("new - base", justify="right")
    for name in found.new.metrics:
        metric = found.metric(name)
        table.add_row(
            metric.title,
            *(
                metric.show(system.metrics[name].estimate) if name in system.metrics else ""
                for system in found.systems
            ),
            metric.show_difference(found.differences["base"][name].estimate),
        )
    return table
