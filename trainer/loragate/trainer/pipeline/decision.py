"""Which way to take: prompting, retrieval, a classifier, an adapter or all weights, by quality and
cost.

Quality is what an evaluation measured, and where none did the table says how to get it; what a
training takes is measured by an estimate, or by the training itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.table import Table

from loragate.trainer.cost import Estimate, MethodEstimate, RequestCost
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.contenders import TFIDF, TITLES
from loragate.trainer.evaluation.evaluation import Evaluation, SystemScores
from loragate.trainer.evaluation.metrics import METRICS, main_metric
from loragate.trainer.run.file import RunFile
from loragate.trainer.run.folder import RunFolder, write_whole
from loragate.trainer.run.run import duration
from loragate.trainer.settings import CostSettings

FILE: Final = "decision.html"
_AFTER_RUN: Final = "after `loragate train`"
_NO_TRAINING: Final = "none"
_Way = Literal["base", "examples", "retrieval", "tfidf", "adapter", "full"]


@dataclass(frozen=True, slots=True)
class Option:
    """One way. `quality` is the measured figure with its interval, or how to get it; tokens are of
    one request, 0 where no model reads a prompt; money is 0 where it is not priced.
    """

    way: str
    quality: str
    is_measured: bool
    prompt_tokens: float
    answer_tokens: float
    request_money: float
    month_money: float
    training: str
    training_money: float


@dataclass(frozen=True, slots=True)
class Decision:
    """All ways side by side. `rows` were asked for the quality, 0 where nothing was measured."""

    metric: str
    rows: int
    currency: str
    options: tuple[Option, ...]

    @property
    def sentence(self) -> str:
        """Where the figures are from."""
        if not self.rows:
            return (
                "Quality is measured when the run is evaluated; ask for this table again then. "
                "Tokens of prompts are those that are expected."
            )
        return (
            f"Quality is {self.metric} on {self.rows} unseen rows, with its interval; tokens are "
            "those that were measured. Training is measured on this machine."
        )

    def table(self) -> Table:
        """For a terminal."""
        table = Table(
            *("Way", self.metric or "Quality", "Training", self.currency),
            *("Prompt tokens", "1,000 requests", "a month"),
            title="Which way?",
            box=box.SIMPLE_HEAD,
            title_justify="left",
        )
        for each in self.options:
            table.add_row(
                each.way,
                each.quality,
                each.training,
                _money(each.training_money, each.training),
                f"{each.prompt_tokens:,.0f}" if each.prompt_tokens else "none",
                _money(1000 * each.request_money),
                _money(each.month_money),
            )
        return table

    def write(self, folder: RunFolder) -> Path:
        """Writes decision.html. Raises RunFolderError."""
        environment = Environment(
            loader=PackageLoader("loragate.trainer.pipeline", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("decision.html.j2").render(decision=self, money=_money)
        path = folder.root / FILE
        write_whole(path, page.encode())
        return path


def decide(folder: RunFolder, estimated: Estimate, settings: RunFile) -> Decision:
    """Of a run's folder, with the quality that its evaluation measured, if there is one."""
    try:
        evaluation = Evaluation.read(folder.evaluation)
    except EvaluationError:
        evaluation = None
    measured = {each.name: each for each in evaluation.systems} if evaluation else {}
    main = main_metric(evaluation.new.metrics) if evaluation else ""
    deciding = _Deciding(folder, estimated, settings, measured, main)
    ways: tuple[_Way, ...] = ("base", "examples", "retrieval", "tfidf", "adapter", "full")
    return Decision(
        METRICS[main].title if main else "",
        evaluation.about.rows if evaluation else 0,
        settings.cost.currency,
        tuple(deciding.option(way) for way in ways),
    )


def trainings(folder: RunFolder) -> Iterator[tuple[str, str, str]]:
    """For a report: the system that was trained, empty where none was, its title, and what its
    training takes by the result and the estimate in the run's folder. Raises RunFolderError.
    """
    prices = folder.resolved().cost
    if folder.is_complete:
        result = folder.result()
        money = result.seconds / 3600 * prices.machine_per_hour
        yield "new", result.method, _took(result.seconds, money, prices.currency)
    estimated = Estimate.read(folder)
    if estimated is None:
        return
    for each in estimated.methods:
        if each.method != estimated.chosen and not each.problem:
            yield "", _title(each.method), _took(each.seconds, each.money, estimated.currency)


@dataclass(frozen=True, slots=True)
class _Deciding:
    folder: RunFolder
    estimated: Estimate
    settings: RunFile
    measured: Mapping[str, SystemScores]
    main: str

    def option(self, way: _Way) -> Option:
        system = self._system(way)
        scores = self.measured.get(system) if system else None
        prompt, answer = self._tokens(way, scores)
        prices = self.settings.cost
        money = _request_money(prompt, answer, prices)
        training, training_money = self._training(way)
        quality = self._quality(scores)
        return Option(
            self._title(way),
            quality or self._how(way),
            bool(quality),
            prompt,
            answer,
            money,
            money * prices.requests_per_month,
            training,
            training_money,
        )

    def _system(self, way: _Way) -> str:
        """The name under which the run's evaluation has it; empty where it is of another run."""
        if way not in ("adapter", "full"):
            return way
        return "new" if (way == "full") == (self.estimated.chosen == "full") else ""

    def _title(self, way: _Way) -> str:
        if way == "base":
            return "the base model, asked plainly"
        if way in TITLES:
            return TITLES[way].format(self.settings.evaluation.examples)
        return _title(self._method(way))

    def _method(self, way: _Way) -> str:
        if way == "full":
            return "full"
        return self.estimated.chosen if self.estimated.chosen != "full" else "lora"

    def _quality(self, scores: SystemScores | None) -> str:
        value = scores.metrics.get(self.main) if scores else None
        if value is None:
            return ""
        show = METRICS[self.main].show
        return f"{show(value.estimate)} ({show(value.low)} to {show(value.high)})"

    def _how(self, way: _Way) -> str:
        """How to get the quality of a way of which none is known."""
        if way in ("adapter", "full") and not self._system(way):
            return f"train a run with [method] name = '{self._method(way)}'"
        if way in TITLES and way not in self.settings.evaluation.contenders:
            return f"name {way!r} in [evaluation] contenders"
        if way == TFIDF and self.measured:
            return "only for rows with labels"
        return "evaluate the run again" if self.measured else _AFTER_RUN

    def _tokens(self, way: _Way, scores: SystemScores | None) -> tuple[float, float]:
        """Of a prompt and an answer, as measured or as expected."""
        if way == TFIDF:
            return 0.0, 0.0
        if scores is not None and "prompt" in scores.metrics:
            return scores.metrics["prompt"].estimate, scores.metrics["length"].estimate
        expected: RequestCost = self.estimated.requests[{"examples": 1, "retrieval": 2}.get(way, 0)]
        return expected.prompt_tokens, expected.answer_tokens

    def _training(self, way: _Way) -> tuple[str, float]:
        if way == TFIDF:
            return "about a second", 0.0
        if way not in ("adapter", "full"):
            return _NO_TRAINING, 0.0
        if self._system(way) and self.folder.is_complete:
            seconds = self.folder.result().seconds
            return duration(seconds), seconds / 3600 * self.settings.cost.machine_per_hour
        found = _estimate_of(self.estimated, self._method(way))
        if found is None:
            return "not estimated", 0.0
        if found.problem:
            return f"cannot be tried: {found.problem}", 0.0
        return duration(found.seconds), found.money


def _estimate_of(estimated: Estimate, method: str) -> MethodEstimate | None:
    return next((each for each in estimated.methods if each.method == method), None)


def _title(method: str) -> str:
    if method == "full":
        return "full fine-tuning: all weights learnt"
    return f"an adapter ({method})"


def _took(seconds: float, money: float, currency: str) -> str:
    priced = f", {currency} {money:,.2f}" if money else ""
    return f"{duration(seconds)}{priced}"


def _request_money(prompt: float, answer: float, prices: CostSettings) -> float:
    return (prompt * prices.million_prompt_tokens + answer * prices.million_answer_tokens) / 1e6


def _money(amount: float, training: str = "") -> str:
    if training == _NO_TRAINING:
        return ""
    return f"{amount:,.2f}" if amount else "not priced"
