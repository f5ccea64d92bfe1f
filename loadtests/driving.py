"""A run from its beginning to its report: calibrate, prepare, ask, judge."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests import calibration
from loadtests.calibration import Calibration
from loadtests.judging import REFUSED, Verdict, judge
from loadtests.preparing import Reached, prepare, remove
from loadtests.records import Run, read_run
from loadtests.report import write_report
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.serving import serving
from loadtests.surroundings import describe_server_programs
from loadtests.target import Target

HERE = Path(__file__).parent
RUN_FILE = "run.jsonl"
CALIBRATION_FILE = "calibration.jsonl"
_MORE_CALIBRATIONS = 2


class Skipped(Exception):
    """The server does not offer what the scenario is about; says what."""


class LocustFailed(Exception):
    """Locust ended without a run."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run. `options` go to Locust as they are."""

    scenario: Scenario
    folder: Path
    like: Path
    objectives: Path | None = None
    options: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    web_port: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    calibration: Calibration
    report: Path | None

    @property
    def refusals(self) -> list[str]:
        return [*self.calibration.refusals, *self.verdict.refusals]

    @property
    def exit_code(self) -> int:
        return REFUSED if self.refusals else self.verdict.exit_code


def run_against(order: Order, server: Reached) -> Outcome:
    """Runs on a server of somebody else's; the tenants made for it are deleted in the end."""
    if order.scenario.stops_server:
        raise Skipped("Only a server that the suite starts itself can be stopped: leave out --url.")
    calibrated = _calibrated(order)
    if calibrated.refusals:
        return Outcome(Verdict([], []), calibrated, None)
    target = prepare(server, order.scenario, order.like, f"load-{uuid.uuid4().hex[:6]}")
    try:
        return _measure(order, target, calibrated)
    finally:
        remove(target)


def run_own(order: Order, command: str) -> Outcome:
    """Runs on a server of the suite's own, in a scratch home."""
    return run_calibrated(order, command, _calibrated(order))


def run_calibrated(order: Order, command: str, calibrated: Calibration) -> Outcome:
    """As `run_own`, by a calibration that has been made."""
    if calibrated.refusals:
        return Outcome(Verdict([], []), calibrated, None)
    order.folder.mkdir(parents=True, exist_ok=True)
    with _own_server(order, command) as server:
        target = prepare(server, order.scenario, order.like, "tenant")
        return _measure(order, target, calibrated)


def calibrate(order: Order, pace_seconds: float = calibration.PACE_SECONDS) -> Calibration:
    """Measures the fixed-pace server as the run will measure the real one.

    With another `pace_seconds` than the one that is claimed, the calibration has to fail.
    """
    options = ("--output-tokens", "64", "--prompt-words", "8")
    paced = replace(order, scenario=SCENARIOS["calibrate"], options=options, web_port=None)
    with calibration.paced_target(pace_seconds) as target:
        return calibration.check(_run_locust(paced, target, order.folder / CALIBRATION_FILE))


def report_again(folder: Path) -> Outcome:
    """Judges and reports a run that lies in a folder already."""
    calibrated = calibration.check(read_run(folder / CALIBRATION_FILE))
    return _report(folder, read_run(folder / RUN_FILE), calibrated)


def _calibrated(order: Order) -> Calibration:
    """Tries again where it fails, since a machine may be busy for a moment."""
    found = calibrate(order)
    for _ in range(_MORE_CALIBRATIONS):
        if not found.refusals:
            break
        found = calibrate(order)
    return found


def _measure(order: Order, target: Target, calibrated: Calibration) -> Outcome:
    if order.scenario.name == "merged" and not target.merged:
        raise Skipped(
            "The server offers no merged model (no name in /v1/models ends in +merged), so there "
            "is nothing to compare with."
        )
    run = _run_locust(order, target, order.folder / RUN_FILE)
    return _report(order.folder, run, calibrated)


def _report(folder: Path, run: Run, calibrated: Calibration) -> Outcome:
    verdict = judge(run)
    if verdict.refusals or calibrated.refusals:
        return Outcome(verdict, calibrated, None)
    return Outcome(verdict, calibrated, write_report(folder, run, verdict, calibrated))


@contextmanager
def _own_server(order: Order, command: str) -> Iterator[Reached]:
    log = order.folder / "server.log"
    with serving(command, order.scenario.server, log) as server:
        settings = {**describe_server_programs(), **server.settings}
        yield Reached(server.http, server.grpc, server.admin_key, server.server_pid, settings)


def _run_locust(order: Order, target: Target, run_file: Path) -> Run:
    """Runs Locust in a process of its own, since it changes Python's standard library."""
    run_file.parent.mkdir(parents=True, exist_ok=True)
    run_file.unlink(missing_ok=True)
    keys = target.save(run_file.with_suffix(".target.json"))
    log = run_file.with_suffix(".locust.log")
    page = ["--headless", "--only-summary"]
    if order.web_port is not None:
        page = ["--web-host", "127.0.0.1", "--web-port", str(order.web_port)]
    command = [
        *(sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py")),
        *page,
        *("--target", str(keys), "--scenario", order.scenario.name, "--run-file", str(run_file)),
        *(("--objectives", str(order.objectives)) if order.objectives is not None else ()),
        *order.options,
        *order.users,
    ]
    try:
        with log.open("wb") as output:
            # From the run's folder: Locust would read a pyproject.toml or a locust.conf here.
            folder = run_file.parent
            _wait_for_locust(subprocess.Popen(command, stdout=output, stderr=output, cwd=folder))
    finally:
        keys.unlink()
    if not run_file.is_file():
        last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise LocustFailed(f"Locust ended without a run:\n{last}")
    return read_run(run_file)


def _wait_for_locust(locust: subprocess.Popen[bytes]) -> None:
    """Ctrl-C goes to Locust, too, which ends its run by itself."""
    try:
        locust.wait()
    except KeyboardInterrupt:
        locust.wait()
    finally:
        locust.kill()
