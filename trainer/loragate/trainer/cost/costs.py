"""What a run will take, before it is run: measured on a few real steps, and priced by the user.

Each method is tried in a process of its own, so that its memory is its own, and what does not fit
tells so without taking the others along.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from rich.progress import Progress

from loragate.adapters.errors import LoragateError
from loragate.adapters.home import Home
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.split_folder import SplitFolder
from loragate.trainer.run.file import RunFile, convert_run_file
from loragate.trainer.run.folder import RunFolder, RunResult, write_whole
from loragate.trainer.settings.cost import CostSettings
from loragate.trainer.settings.method import MethodName
from loragate.trainer.settings.section import settled
from loragate.trainer.training.plan import Plan, make_plan
from loragate.trainer.training.preparing import Prepared, prepare
from loragate.trainer.training.rows import Rows
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
    """One method on this machine. Seconds and bytes are 0 and `problem` says why where it could
    not be tried. `training_seconds` is the time in steps, `seconds` with validations.
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
    """One way to get the same kind of answer, a request. `per_month` is at the requests given."""

    way: str
    prompt_tokens: float
    answer_tokens: float
    money: float
    per_month: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """`chosen` is the run's own method. `pays_off_after` is in requests: how many cost as much
    more with examples in the prompt as the training does; 0 where prices are not known.
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
        """Raises RunFolderError."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=2)
        write_whole(run.root / FILE, text + b"\n")

    @classmethod
    def read(cls, run: RunFolder) -> Estimate | None:
        """The estimate that was made for this run, if one was."""
        path = run.root / FILE
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class Reckoning:
    """An estimate against what happened. `error` is a share: 0.1 is 10 % too long."""

    estimated_seconds: float
    actual_seconds: float
    error: float
    sentence: str


@dataclass(frozen=True, slots=True)
class _Probe:
    """What a few steps measured; `problem` where they could not be taken."""

    seconds_per_token: float
    memory_bytes: int
    problem: str = ""


def estimate(
    run: RunFile,
    root: Path,
    splits: SplitFolder,
    home: Home,
    progress: Progress,
    methods: Sequence[MethodName] = COMPARED,
) -> Estimate:
    """Try the run's own method and the others for some steps each. `root` is the run file's folder.

    Raises what preparing the run raises; a method that cannot be tried has its reason.
    """
    own = run.method.name
    task = progress.add_task("Estimate", total=len({own, *methods}))
    found: list[MethodEstimate] = []
    for method in dict.fromkeys((own, *methods)):
        found.append(_method_estimate(_with_method(run, method), root, splits, home))
        progress.advance(task)
    requests = _requests(run.cost, prepare(run, root, splits, home), splits)
    return Estimate(
        own, tuple(found), requests, run.cost.currency, _break_even(found[0].money, requests)
    )


def reckon(estimated: Estimate, result: RunResult) -> Reckoning:
    """Compared by the token, since a run may have stopped early."""
    own = estimated.own
    expected = own.training_seconds * result.training_tokens / max(own.tokens, 1)
    error = expected / result.training_seconds - 1
    return Reckoning(
        expected,
        result.training_seconds,
        error,
        f"Estimated were {expected:.0f} s for the {result.steps} steps that were taken, and they "
        f"took {result.training_seconds:.0f} s: {100 * abs(error):.0f} % "
        f"{'too long' if error > 0 else 'too short'}.",
    )


def _with_method(run: RunFile, method: MethodName) -> RunFile:
    if method == run.method.name:
        return run
    # What was chosen for the run's own method need not suit another.
    return msgspec.structs.replace(
        run,
        method=msgspec.structs.replace(run.method, name=method, alpha="auto"),
        training=msgspec.structs.replace(run.training, learning_rate="auto"),
        model=msgspec.structs.replace(run.model, continue_from=""),
    )


def _method_estimate(run: RunFile, root: Path, splits: SplitFolder, home: Home) -> MethodEstimate:
    method = run.method.name
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        asked = pool.submit(_probe, msgspec.to_builtins(run), root, splits.path, home.root)
        try:
            probe = asked.result()
        except BrokenProcessPool:  # the system ended it, mostly for its memory
            probe = _Probe(0, 0, "the system ended the trial, most likely for want of memory")
    if probe.problem:
        return MethodEstimate(method, problem=probe.problem)
    prepared = prepare(run, root, splits, home)
    plan = prepared.plan
    tokens = plan.tokens[-1]
    training = tokens * probe.seconds_per_token
    validated = _validations(prepared, plan) * prepared.validation.tokens
    seconds = training + validated * probe.seconds_per_token * _FORWARD[method]
    return MethodEstimate(
        method,
        steps=plan.steps,
        tokens=tokens,
        tokens_per_second=1 / probe.seconds_per_token,
        training_seconds=training,
        seconds=seconds,
        memory_bytes=max(probe.memory_bytes, memory_of(prepared).total),
        money=seconds / 3600 * run.cost.machine_per_hour,
    )


def _probe(settings: dict[str, object], root: Path, splits: Path, home: Path) -> _Probe:
    """In its own process: some steps of the run as it would be, in a folder that goes away."""
    try:
        prepared = _shortened(
            prepare(convert_run_file(settings), root, SplitFolder.read(splits), Home(home))
        )
        with temporary_folder("estimate") as scratch:
            folder = RunFolder(scratch)
            with Progress(disable=True) as progress:
                result = train(prepared, folder, progress)
            steps = [line for line in folder.steps() if "seconds" in line]
    except (LoragateError, ImportError) as error:
        return _Probe(0, 0, str(error))
    # The first step also allocates and warms up, and does not count.
    first, last = steps[0], steps[-1]
    per_token = (last["seconds"] - first["seconds"]) / (last["tokens"] - first["tokens"])
    return _Probe(per_token, result.peak_memory_bytes)


def _shortened(prepared: Prepared) -> Prepared:
    run = prepared.run
    steps = run.cost.probe_steps + 1
    training = msgspec.structs.replace(
        run.training,
        max_steps=steps,
        evaluate_every=steps,
        save_every=steps,
        log_every=1,
        trackers=(),
    )
    return dataclasses.replace(
        prepared,
        run=msgspec.structs.replace(run, training=training),
        validation=Rows(prepared.validation.rows[:_VALIDATED]),
        plan=make_plan(
            prepared.training.rows, training, seed=run.seed, processes=prepared.processes
        ),
    )


def _validations(prepared: Prepared, plan: Plan) -> int:
    """One before the first step, and then every so many."""
    return 1 + plan.steps // settled(prepared.run.training.evaluate_every)


def _requests(
    prices: CostSettings, prepared: Prepared, splits: SplitFolder
) -> tuple[RequestCost, ...]:
    """With the adapter, and what would take its place in each prompt."""
    rows = prepared.training
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
