"""`loragate train`: a run file to a version in the registry."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json

if TYPE_CHECKING:
    from loragate.trainer.evaluation.evaluation import Evaluation
    from loragate.trainer.pipeline.sweep import Tried
    from loragate.trainer.run.folder import RunFolder, RunResult
    from loragate.trainer.run.run import Run

_INTERRUPTED = 130  # as a shell says it of what Ctrl-C ended


def add_to(app: typer.Typer) -> None:
    app.command(
        "train",
        epilog=examples(
            "loragate train examples/train/support.toml",
            "loragate train run.toml --check",
            "loragate train run.toml --resume",
            "loragate train support.toml billing.toml moving.toml",
            "loragate train run.toml --sweep learning_rate=1e-4,5e-5 --sweep rank=8,16",
            "loragate train run.toml --learning-curve",
            "loragate train run.toml --estimate",
        ),
    )(train)


def train(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN.toml...",
            help="The run file; of several, all are checked before the first is trained, and one "
            "is trained after the other.",
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Remove what an earlier run made in the folder, and nothing else; begin anew.",
        ),
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=A,B",
            help="Train with each value, and every combination; ends with a table.",
        ),
    ] = None,
    learning_curve: Annotated[
        bool,
        typer.Option(
            "--learning-curve",
            help="Train with a quarter, half and all of the rows; say whether more would help.",
        ),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only say what it would take, and other ways beside it: time, memory, money, and "
            "quality where it was measured.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only say what is wrong with it: settings, requirements, model, data, memory, "
            "disk, registry. Makes nothing, takes seconds; ends with 1 where something is.",
        ),
    ] = False,
    only_train: Annotated[
        bool, typer.Option("--only-train", help="End before evaluation and publishing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make an adapter as the run file says: clean, split, train, evaluate, publish.

    What can be checked is checked before the first step. All that is made lies in the run's folder:
    the file as it was resolved, the splits and their report, the log, the loss curve, the best
    adapter and the evaluation. Ctrl-C stops after the step under way; --resume goes on from there,
    to the same result. A run whose evaluation does not hold what [evaluation] requires is not
    published, and ends with 1.

    Started again, a run that has learnt nothing yet begins anew, with what its files say now. One
    that has is gone on with by --resume, unless another setting or file would make another
    training: that is refused by name, and --overwrite begins anew.

    The commented sample of every setting is examples/train/run.toml.
    """
    modes = {
        "--check": check,
        "--estimate": estimate,
        "--sweep": bool(sweep),
        "--learning-curve": learning_curve,
    }
    _refuse_contradictions([name for name, is_set in modes.items() if is_set], resume, overwrite)
    if not (check or estimate):
        _start_training_process()
    from rich.console import Console

    from loragate.trainer.cli.progress import progress_bar, silence_libraries

    silence_libraries()  # before they are imported: some print when they are

    from loragate.adapters.home import Home
    from loragate.trainer.run.run import Run
    from loragate.trainer.training.train import Interrupted

    console = Console(stderr=True, highlight=False)
    texts = [_text_of(run) for run in runs]
    is_sound = True
    with progress_bar(console, is_hidden=as_json) as progress:
        home = Home.from_environment()
        loaded = [
            Run.load(run, text, home, progress, console.print)
            for run, text in zip(runs, texts, strict=True)
        ]
        _require_apart(loaded)
        if not any(modes.values()):
            _check_before(loaded, resume=resume, overwrite=overwrite, publishes=not only_train)
        for number, one in enumerate(loaded, start=1):
            if len(loaded) > 1:
                one.say(f"Run {number} of {len(loaded)}: {one.file}")
            try:
                if check:
                    is_sound &= _check(one, as_json, publishes=not only_train)
                elif estimate:
                    _estimate(one, as_json)
                elif learning_curve:
                    _learning_curve(one, as_json, overwrite=overwrite)
                elif sweep:
                    _sweep(one, sweep, as_json, overwrite=overwrite)
                else:
                    is_sound &= _train(one, as_json, publishes=not only_train)
            except Interrupted as stopped:
                console.print(
                    f"{stopped}. {_how_to_go_on(runs, sweep, learning_curve)}", style="yellow"
                )
                raise typer.Exit(_INTERRUPTED) from None
    if not is_sound:
        raise typer.Exit(1)


def _refuse_contradictions(modes: Sequence[str], resume: bool, overwrite: bool) -> None:
    if len(modes) > 1:
        raise typer.BadParameter(f"{modes[0]} and {modes[1]} exclude each other; give one of them")
    if resume and overwrite:
        raise typer.BadParameter(
            "--resume goes on with what is there and --overwrite removes it; give one of them"
        )
    if modes and modes[0] in ("--check", "--estimate") and (resume or overwrite):
        raise typer.BadParameter(
            f"{modes[0]} trains nothing, so it takes neither --resume nor --overwrite"
        )


def _text_of(run: Path) -> str:
    try:
        return run.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{run} cannot be read: {error}", param_hint="RUN.toml") from None


def _require_apart(runs: "Sequence[Run]") -> None:
    """Two runs in one folder would each undo the other."""
    first: dict[Path, Path] = {}
    for run in runs:
        if (other := first.setdefault(run.folder.root, run.file)) is not run.file:
            raise typer.BadParameter(
                f"{other} and {run.file} have the same folder ({run.folder.root}); give each its "
                "own ('folder' in the run file)",
                param_hint="RUN.toml",
            )


def _check_before(runs: "Sequence[Run]", *, resume: bool, overwrite: bool, publishes: bool) -> None:
    """All of them, before hours of training the first."""
    from loragate.trainer.pipeline.checks import require_sound
    from loragate.trainer.pipeline.pipeline import check

    if len(runs) > 1:
        for run in runs:
            run.say(f"Checking {run.file}")
            require_sound(run, publishes=publishes)
    for run in runs:
        check(run, resume=resume, overwrite=overwrite, publishes=publishes)


def _how_to_go_on(
    runs: "Sequence[Path]", sweep: "Sequence[str] | None", learning_curve: bool
) -> str:
    command = ["loragate", "train", *map(str, runs)]
    if not (sweep or learning_curve):
        return f"Go on with: {shlex.join([*command, '--resume'])}"
    for choice in sweep or ():
        command += ["--sweep", choice]
    if learning_curve:
        command.append("--learning-curve")
    return f"Go on with: {shlex.join(command)} (what is complete is not trained again)"


def _start_training_process() -> None:
    """Has it import, while this process does, what takes several seconds; see `train_apart`, which
    starts it where this does not.
    """
    import multiprocessing
    from importlib.metadata import version
    from multiprocessing import forkserver

    if "+cpu" not in version("torch"):
        return
    multiprocessing.set_forkserver_preload(["loragate.trainer.pipeline.preloaded"])
    forkserver.ensure_running()


def _train(run: "Run", as_json: bool, *, publishes: bool) -> bool:
    """Whether the evaluation holds what is required."""
    from loragate.trainer.cost import Estimate, check_estimate
    from loragate.trainer.pipeline.pipeline import evaluate, publish
    from loragate.trainer.pipeline.training_process import train_apart
    from loragate.trainer.training import machine

    result = train_apart(run)
    if not machine.is_first_process():
        return True  # the first process goes on alone
    if not as_json:
        _say_result(run.folder, result)
    if (estimated := Estimate.read(run.folder)) is not None:
        run.say(check_estimate(estimated, result).sentence)
    found = evaluate(run) if publishes else None
    version: str | None = None
    if found is not None:
        if not as_json:
            _say_evaluation(run.folder, found)
        if found.requirements.holds and run.folder.resolved().publish.adapter:
            published = publish(run, found)
            version = str(published.version)
            run.say(f"Published {version}.")
            if published.merged:
                run.say(f"Merged {version}: {published.merged.report.sentence}")
    run.say(run.phases.sentence)
    if as_json:
        print_json(
            {
                "folder": str(run.folder.root),
                "diagnosis": result.diagnosis.sentence,
                "fit": result.diagnosis.fit,
                "metrics": result.metrics,
                "holds": found.requirements.holds if found else None,
                "version": version,
                "seconds": run.phases.seconds,
            }
        )
    return found is None or found.requirements.holds


def _sweep(run: "Run", choices: Sequence[str], as_json: bool, *, overwrite: bool) -> None:
    from dataclasses import replace

    from loragate.trainer.pipeline.sweep import sweep
    from loragate.trainer.pipeline.training_process import train_apart
    from loragate.trainer.run.folder import RunFolder

    root = run.folder.root
    run = replace(run, folder=RunFolder(root.with_name(f"{root.name}-sweep")))
    tried = sweep(run, choices, overwrite=overwrite, train=train_apart)
    if as_json:
        print_json(
            [
                {
                    **one.changes,
                    "validation_loss": one.result.diagnosis.best_validation_loss,
                    "fit": one.result.diagnosis.fit,
                    "folder": str(one.folder.root),
                }
                for one in tried
            ]
        )
    else:
        _say_sweep(tried)


def _learning_curve(run: "Run", as_json: bool, *, overwrite: bool) -> None:
    from dataclasses import asdict, replace

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from loragate.trainer.pipeline.learning_curve import PICTURE, learning_curve
    from loragate.trainer.run.folder import RunFolder

    root = run.folder.root
    run = replace(run, folder=RunFolder(root.with_name(f"{root.name}-learning-curve")))
    curve = learning_curve(run, overwrite=overwrite)
    if as_json:
        print_json({**asdict(curve), "helps": curve.helps, "sentence": curve.sentence})
        return
    table = Table("Rows", "Validation loss", "95 % interval", box=box.SIMPLE_HEAD)
    for point in curve.points:
        table.add_row(str(point.rows), f"{point.loss:.4f}", f"{point.low:.4f} to {point.high:.4f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"[bold]{curve.sentence}[/]", soft_wrap=True)
    console.print(f"Picture: {run.folder.root / PICTURE}", soft_wrap=True)


def _check(run: "Run", as_json: bool, *, publishes: bool) -> bool:
    from rich.console import Console

    from loragate.trainer.pipeline.checks import Check, examine

    console = Console(highlight=False)
    found: list[Check] = []
    for each in examine(run, publishes=publishes):
        found.append(each)
        if not as_json:
            mark = "[red]✗[/]" if each.problem else "[green]✓[/]"
            console.print(mark, each.name, end="" if each.problem else "\n")
            if each.problem:
                console.print(f": {each.problem}", markup=False, soft_wrap=True)
    problems = {each.name: str(each.problem) for each in found if each.problem}
    if as_json:
        print_json({"sound": not problems, "problems": problems})
    elif not problems:
        console.print("Nothing is wrong with it.")
    return not problems


def _estimate(run: "Run", as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from loragate.trainer.cost import cost_tables, estimate
    from loragate.trainer.pipeline.attempt import begin_estimate
    from loragate.trainer.pipeline.checks import require_sound
    from loragate.trainer.pipeline.decision import decide
    from loragate.trainer.pipeline.pipeline import ready_data

    require_sound(run, publishes=False)
    begin_estimate(run)
    found = estimate(run, ready_data(run))
    found.write(run.folder)
    decision = decide(run.folder, found, run.settings)
    page = decision.write(run.folder)
    if as_json:
        print_json({**asdict(found), "decision": asdict(decision)})
        return
    console = Console(highlight=False)
    console.print(cost_tables(found))
    console.print(decision.table())
    console.print(decision.sentence, soft_wrap=True)
    console.print(f"Page: {page}", soft_wrap=True)


def _say_result(folder: "RunFolder", result: "RunResult") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    metrics = result.metrics
    for name, value in (
        ("Rows", f"{metrics['training_rows']:.0f} to train, {metrics['validation_rows']:.0f} to "
         f"validate, {metrics['too_long_rows']:.0f} too long and left out"),
        ("Steps", f"{result.steps} ({result.epochs:.1f} epochs)"),
        ("Tokens", f"{result.training_tokens:,}, of them {result.supervised_tokens:,} learnt"),
        ("Time", f"{result.seconds:.0f} s, {metrics['tokens_per_second']:.0f} tokens/s"),
        ("Memory", f"{result.peak_memory_bytes / 2**30:.1f} GiB at most"),
        ("Loss curve", str(folder.curve)),
        ("Adapter", str(folder.adapter)),
    ):  # fmt: skip
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"[bold]{result.diagnosis.sentence}[/]", soft_wrap=True)


def _say_evaluation(folder: "RunFolder", found: "Evaluation") -> None:
    from rich.console import Console

    from loragate.trainer.cli.evaluate import say_evaluation

    say_evaluation(found, folder, Console(highlight=False))


def _say_sweep(tried: Sequence["Tried"]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from loragate.trainer.pipeline.sweep import best_of

    best = best_of(tried)
    table = Table(*best.changes, "Validation loss", "at step", "Fit", "Time", box=box.SIMPLE_HEAD)
    for one in tried:
        diagnosis = one.result.diagnosis
        table.add_row(
            *(str(value) for value in one.changes.values()),
            f"{diagnosis.best_validation_loss:.4f}",
            str(diagnosis.best_step),
            diagnosis.fit,
            f"{one.result.seconds:.0f} s",
            style="bold" if one is best else "",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Best: {best.folder.root}", soft_wrap=True)
    console.print(
        f"Publish it with: loragate publish {best.folder.root.parent}", soft_wrap=True, markup=False
    )
