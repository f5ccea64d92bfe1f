"""Estimates what training, serving and prompting cost, from a few real steps and the user's prices.

Each method is tried in a process of its own, so that the memory measured is that method's alone,
and one that does not fit does not end the others.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from rich import box
from rich.console import Group
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from loragate.adapters.errors import LoragateError
from loragate.adapters.home import Home
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.splits import SplitFolder
from loragate.trainer.run.file import convert_run_file
from loragate.trainer.run.folder import RunFolder, RunResult, write_whole
from loragate.trainer.run.run import Run, duration
from loragate.trainer.settings import CostSettings, MethodName, resolved
from loragate.trainer.training.encoding import EncodedRows
from loragate.trainer.training.plan import TrainingPlan, make_plan
from loragate.trainer.training.schedule import Schedule, make_schedule
from loragate.trainer.training.train import memory_of, train

FILE: Final = "estimate.json"
COMPARED: Final[tuple[MethodName, ...]] = ("lora", "qlora", "full")

_VALIDATED: Final = 8  # rows in the probe's validations
# A validation only computes forward; a step also backward, which with frozen weights costs as much
# again, and with trained ones twice as much.
_FORWARD: Final[dict[MethodName, float]] = {
    "lora": 1 / 2,
    "rslora": 1 / 2,
    "qlora": 1 / 2,
    "full": 1 / 3,
}


@dataclass(frozen=True, slots=True)
class MethodEstimate:
    """One method on this machine. Where it could not be tried, `problem` says why and the numbers
    are 0. `training_seconds` is the time in steps, `seconds` includes validations; `money` is in
    the run's currency.
    """

    method: str
    steps: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    training_seconds: float = 0.0
    seconds: float = 0.0
    memory_bytes: int = 0
    money: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RequestCost:
    """The cost of one request, for one way to get the same kind of answer. `per_month` is for the
    [cost] requests_per_month.
    """

    way: str
    prompt_tokens: float
    answer_tokens: float
    money: float
    per_month: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimates of all methods; `chosen` is the run's own. After `pays_off_after` requests,
    examples in the prompt have cost as much as the training; 0 where prices are not known.
    """

    chosen: str
    methods: tuple[MethodEstimate, ...]
    requests: tuple[RequestCost, ...]
    currency: str
    pays_off_after: int

    @property
    def own(self) -> MethodEstimate:
        return next(each for each in self.methods if each.method == self.chosen)

    def write(self, run: RunFolder) -> None:
        """Writes estimate.json. Raises RunFolderError."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=2)
        write_whole(run.root / FILE, text + b"\n")

    @classmethod
    def read(cls, run: RunFolder) -> Estimate | None:
        """The estimate that was made for this run, if one was."""
        path = run.root / FILE
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class EstimateCheck:
    """An estimate against the actual time. An `error` of 0.1 means that it was 10 % too long."""

    estimated_seconds: float
    actual_seconds: float
    error: float
    sentence: str


@dataclass(frozen=True, slots=True)
class _Probe:
    """What a few steps measured, or the `problem` why they could not be taken."""

    seconds_per_token: float
    memory_bytes: int
    problem: str = ""


def estimate(run: Run, splits: SplitFolder, methods: Sequence[MethodName] = COMPARED) -> Estimate:
    """Tries the run's own method and the others for some steps each.

    Raises what `make_plan` raises. A method that cannot be tried raises nothing: its estimate has
    the problem.
    """
    own, prices = run.settings.method.name, run.settings.cost
    task = run.progress.add_task("Estimate", total=len({own, *methods}))
    found: list[MethodEstimate] = []
    for method in dict.fromkeys((own, *methods)):
        found.append(_method_estimate(_with_method(run, method), splits))
        run.progress.advance(task)
    requests = _requests(prices, make_plan(run, splits))
    return Estimate(
        own, tuple(found), requests, prices.currency, _break_even(found[0].money, requests)
    )


def check_estimate(estimated: Estimate, result: RunResult) -> EstimateCheck:
    """Compares an estimate with what the run took, by the token, since a run may stop early."""
    own = estimated.own
    expected = own.training_seconds * result.training_tokens / max(own.tokens, 1)
    error = expected / result.training_seconds - 1
    return EstimateCheck(
        expected,
        result.training_seconds,
        error,
        f"Estimated were {expected:.0f} s for the {result.steps} steps that were taken, and they "
        f"took {result.training_seconds:.0f} s: {100 * abs(error):.0f} % "
        f"{'too long' if error > 0 else 'too short'}.",
    )


def _with_method(run: Run, method: MethodName) -> Run:
    settings = run.settings
    if method == settings.method.name:
        return run
    # What was chosen for the run's own method need not suit another.
    settings = msgspec.structs.replace(
        settings,
        method=msgspec.structs.replace(settings.method, name=method, alpha="auto"),
        training=msgspec.structs.replace(settings.training, learning_rate="auto"),
        model=msgspec.structs.replace(settings.model, continue_from=""),
    )
    return dataclasses.replace(run, settings=settings)


def _method_estimate(run: Run, splits: SplitFolder) -> MethodEstimate:
    method = run.settings.method.name
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        asked = pool.submit(
            _probe, msgspec.to_builtins(run.settings), run.root, splits.path, run.home.root
        )
        try:
            probe = asked.result()
        except BrokenProcessPool:  # the system ended it, mostly for its memory
            probe = _Probe(0, 0, "the system ended it, most likely since memory ran out")
    if probe.problem:
        return MethodEstimate(method, problem=probe.problem)
    plan = make_plan(run, splits)
    schedule = plan.schedule
    tokens = schedule.tokens[-1]
    training = tokens * probe.seconds_per_token
    validated = _validations(plan, schedule) * plan.validation.tokens
    seconds = training + validated * probe.seconds_per_token * _FORWARD[method]
    return MethodEstimate(
        method,
        steps=schedule.steps,
        tokens=tokens,
        tokens_per_second=1 / probe.seconds_per_token,
        training_seconds=training,
        seconds=seconds,
        memory_bytes=max(probe.memory_bytes, memory_of(plan).total),
        money=seconds / 3600 * run.settings.cost.machine_per_hour,
    )


def _probe(settings: dict[str, object], root: Path, splits: Path, home: Path) -> _Probe:
    """Runs in a process of its own: takes some steps of the run, in a temporary folder."""
    try:
        with (
            temporary_folder("estimate") as scratch,
            Progress(disable=True) as progress,
        ):
            folder = RunFolder(scratch)
            run = Run(convert_run_file(settings), root, folder, Home(home), progress)
            result = train(run, _shortened(make_plan(run, SplitFolder.read(splits))))
            steps = [line for line in folder.steps() if "seconds" in line]
    except (LoragateError, ImportError) as error:
        return _Probe(0, 0, str(error))
    # The first step also allocates and warms up, and does not count.
    first, last = steps[0], steps[-1]
    per_token = (last["seconds"] - first["seconds"]) / (last["tokens"] - first["tokens"])
    return _Probe(per_token, result.peak_memory_bytes)


def _shortened(plan: TrainingPlan) -> TrainingPlan:
    settings = plan.settings
    steps = settings.cost.probe_steps + 1
    training = msgspec.structs.replace(
        settings.training,
        max_steps=steps,
        evaluate_every=steps,
        save_every=steps,
        log_every=1,
        trackers=(),
    )
    return dataclasses.replace(
        plan,
        settings=msgspec.structs.replace(settings, training=training),
        validation=EncodedRows(plan.validation.rows[:_VALIDATED]),
        schedule=make_schedule(
            plan.training.rows, training, seed=settings.seed, processes=plan.processes
        ),
    )


def _validations(plan: TrainingPlan, schedule: Schedule) -> int:
    """How many: one before the first step, one every `evaluate_every` steps, one at the end."""
    return 1 + math.ceil(schedule.steps / resolved(plan.settings.training.evaluate_every))


def _requests(prices: CostSettings, plan: TrainingPlan) -> tuple[RequestCost, ...]:
    """The cost of a request with the adapter, with examples in the prompt, and with retrieval."""
    rows = plan.training
    whole = rows.tokens / len(rows.rows)
    answer = rows.supervised / len(rows.rows)
    prompt = whole - answer

    def cost(way: str, more: float) -> RequestCost:
        money = (
            (prompt + more) * prices.million_prompt_tokens + answer * prices.million_answer_tokens
        ) / 1e6
        return RequestCost(way, prompt + more, answer, money, money * prices.requests_per_month)

    return (
        cost("the adapter", 0),
        cost(
            f"{prices.few_shot_examples} examples in the prompt", prices.few_shot_examples * whole
        ),
        cost(f"retrieval of {prices.retrieval_tokens} tokens", prices.retrieval_tokens),
    )


def _break_even(training_money: float, requests: Sequence[RequestCost]) -> int:
    adapter, few_shot = requests[0], requests[1]
    saved = few_shot.money - adapter.money
    return round(training_money / saved) if saved > 0 else 0


def cost_tables(estimate: Estimate) -> Group:
    """For a terminal: training by method, requests by way, and when training pays off."""
    return Group(_training_table(estimate), _requests_table(estimate), Text(_in_words(estimate)))


def _training_table(estimate: Estimate) -> Table:
    table = Table(
        *("Method", "Steps", "Tokens", "Tokens/s", "Time", "Memory", estimate.currency),
        title="Training, from steps measured here",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for each in estimate.methods:
        mark = " ←" if each.method == estimate.chosen else ""
        if each.problem:
            table.add_row(f"{each.method}{mark}", Text(f"cannot be tried: {each.problem}"))
        else:
            table.add_row(f"{each.method}{mark}", *_figures(each))
    return table


def _figures(each: MethodEstimate) -> tuple[str, ...]:
    return (
        f"{each.steps:,}",
        f"{each.tokens:,}",
        f"{each.tokens_per_second:,.0f}",
        duration(each.seconds),
        f"{each.memory_bytes / 2**30:.1f} GiB",
        _money(each.money),
    )


def _requests_table(estimate: Estimate) -> Table:
    table = Table(
        *("A request with", "Prompt tokens", "Answer tokens", estimate.currency, "a month"),
        title="Serving",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for each in estimate.requests:
        table.add_row(
            each.way,
            f"{each.prompt_tokens:,.0f}",
            f"{each.answer_tokens:,.0f}",
            _money(each.money, 6),
            _money(each.per_month),
        )
    return table


def _in_words(estimate: Estimate) -> str:
    adapter, few_shot, _ = estimate.requests
    times = few_shot.prompt_tokens / adapter.prompt_tokens
    sentence = f"Examples in the prompt make it {times:.1f} times as long, with every request."
    if estimate.pays_off_after:
        sentence += (
            f" The training costs as much as they do after {estimate.pays_off_after:,} requests."
        )
    return sentence


def _money(amount: float, digits: int = 2) -> str:
    return f"{amount:,.{digits}f}" if amount else "not priced"
