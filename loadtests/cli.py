"""`python -m loadtests`: see `README.md`."""

import itertools
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from loadtests import driving
from loadtests.driving import LocustFailed, Order, Outcome, Skipped
from loadtests.judging import REFUSED
from loadtests.preparing import PreparationFailed, Reached, prepare
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.serving import SERVE, ServerFailed

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "adapters" / "acme-support"
RUNS = ROOT / "build" / "loadtests"
WRONG_COMMAND = 2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Load tests of a server.")
Name = Annotated[str, typer.Argument(metavar="SCENARIO", help="See `list`.")]
Url = Annotated[str | None, typer.Option(help="A running server's HTTP address.")]
Grpc = Annotated[str, typer.Option(help="The same server's gRPC address.")]
Key = Annotated[str, typer.Option(envvar="LORAGATE_ADMIN_KEY", help="Its admin key.")]
Like = Annotated[Path, typer.Option(help="An adapter of the base model; others are made like it.")]


@app.command("list")
def list_scenarios() -> None:
    """Say what there is to run."""
    for scenario in SCENARIOS.values():
        typer.echo(f"{scenario.name:18}{scenario.about}")


@app.command()
def run(
    name: Name,
    url: Url = None,
    grpc: Grpc = "127.0.0.1:9000",
    admin_key: Key = "",
    command: Annotated[
        str, typer.Option(help="Starts a server where there is no --url; {home} is its home.")
    ] = SERVE,
    like: Like = EXAMPLE,
    rate: Annotated[float, typer.Option(help="Requests a second; scenarios multiply it.")] = 1.0,
    duration: Annotated[float, typer.Option(help="Seconds; 0: the scenario's own.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    protocol: Annotated[str, typer.Option(help="http, grpc or both.")] = "both",
    prompt_words: Annotated[str, typer.Option(help="Lengths of prompts.")] = "8,24,96",
    output_tokens: Annotated[str, typer.Option(help="Lengths of answers.")] = "16,32,64",
    objectives: Annotated[Path | None, typer.Option(help="Instead of objectives.toml.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the run and its report.")] = None,
    web: Annotated[int | None, typer.Option(help="Locust's page on this port instead.")] = None,
) -> None:
    """Calibrate, prepare the server, run a scenario, and write its report.

    Exit codes: 0 all objectives met, or nothing to test; 1 some missed; 3 the figures would not be
    the server's, so there is no report.
    """
    given = {
        "--rate": rate,
        "--duration": duration,
        "--seed": seed,
        "--prompt-words": prompt_words,
        "--output-tokens": output_tokens,
    }
    options = [(flag, str(value)) for flag, value in given.items()]
    # SIGTERM then ends the processes that were started, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    order = Order(
        scenario=_scenario(name),
        folder=(out or RUNS / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute(),
        like=like,
        objectives=None if objectives is None else objectives.absolute(),
        options=tuple(itertools.chain.from_iterable(options)),
        users=_users(protocol),
        web_port=web,
    )
    try:
        if url is None:
            outcome = driving.run_own(order, command)
        else:
            outcome = driving.run_against(order, Reached(url, grpc, admin_key))
    except Skipped as reason:
        typer.echo(f"Skipped: {reason}")
        return
    except (PreparationFailed, ServerFailed, LocustFailed) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(REFUSED) from None
    _tell(outcome)


@app.command()
def calibrate(
    true_pace: Annotated[
        float, typer.Option(help="Seconds; another than 0.02 shows that a wrong pace is refused.")
    ] = 0.02,
    protocol: Annotated[str, typer.Option(help="http, grpc or both.")] = "both",
    out: Annotated[Path, typer.Option(help="The folder for its samples.")] = RUNS / "calibration",
) -> None:
    """Measure a server of known pace, to see whether this machine's figures can be believed."""
    order = Order(SCENARIOS["calibrate"], out.absolute(), EXAMPLE, users=_users(protocol))
    done = driving.calibrate(order, true_pace)
    for found in done.measured:
        typer.echo(
            f"{found.protocol}: gap p50 {found.gap_p50 * 1000:.2f} ms, mean "
            f"{found.gap_mean * 1000:.2f} ms, p99 {found.gap_p99 * 1000:.2f} ms; "
            f"first token p50 {found.ttft_p50 * 1000:.1f} ms ({found.gaps} gaps)"
        )
    for reason in done.refusals:
        typer.echo(f"Refused: {reason}", err=True)
    if done.refusals:
        raise typer.Exit(REFUSED)


@app.command("prepare")
def prepare_target(
    name: Name,
    url: Annotated[str, typer.Option(help="A running server's HTTP address.")],
    admin_key: Key,
    grpc: Grpc = "127.0.0.1:9000",
    like: Like = EXAMPLE,
    out: Annotated[Path, typer.Option(help="Keys and names, for Locust.")] = Path("target.json"),
) -> None:
    """Make a scenario's tenants and adapters, to start Locust by hand."""
    try:
        target = prepare(Reached(url, grpc, admin_key), _scenario(name), like, "load")
    except PreparationFailed as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(REFUSED) from None
    target.save(out)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Of a run.")]) -> None:
    """Judge and report a run again."""
    _tell(driving.report_again(folder))


def _scenario(name: str) -> Scenario:
    if name not in SCENARIOS:
        typer.echo(f"There is no scenario '{name}'; there are {', '.join(SCENARIOS)}.", err=True)
        raise typer.Exit(WRONG_COMMAND)
    return SCENARIOS[name]


def _users(protocol: str) -> tuple[str, ...]:
    users = {"http": ("HttpStreams",), "grpc": ("GrpcStreams",), "both": ()}
    if protocol not in users:
        typer.echo(f"--protocol is http, grpc or both, not '{protocol}'.", err=True)
        raise typer.Exit(WRONG_COMMAND)
    return users[protocol]


def _tell(outcome: Outcome) -> None:
    for reason in outcome.refusals:
        typer.echo(f"No report: {reason}", err=True)
    for finding in outcome.verdict.findings:
        sign = "met   " if finding.is_met else "MISSED"
        typer.echo(f"{sign} {finding.objective} {finding.limit:g}: {finding.found}")
    if outcome.report is not None:
        typer.echo(f"Report: {outcome.report}")
    sys.stdout.flush()
    raise typer.Exit(outcome.exit_code)
