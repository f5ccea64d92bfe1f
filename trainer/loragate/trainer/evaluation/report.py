"""An evaluation as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from loragate.trainer.evaluation import plots
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.metrics import METRICS, Metric
from loragate.trainer.evaluation.rubric import CRITERIA
from loragate.trainer.evaluation.statistics import Interval
from loragate.trainer.run.folder import write_whole

FILE: Final = "report.html"


@dataclass(frozen=True, slots=True)
class _Cell:
    """A figure with its interval under it; `tone` is good, bad or empty."""

    text: str
    interval: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    metric: Metric
    scores: tuple[_Cell, ...]
    differences: tuple[_Cell, ...]


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Raises RunFolderError."""
    path = folder / FILE
    write_whole(path, render_report(evaluation).encode())
    return path


def render_report(evaluation: Evaluation) -> str:
    environment = Environment(
        loader=PackageLoader("loragate.trainer.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        about=evaluation.about,
        finished=f"{datetime.fromisoformat(evaluation.about.finished_at):%-d %B %Y, %H:%M} UTC",
        verdict=evaluation.verdict,
        summary=tuple(_summary(evaluation)),
        rivals=tuple(evaluation.differences),
        rows=tuple(_rows(evaluation)),
        quality=plots.quality(evaluation),
        losses=plots.losses(evaluation),
        confusion=plots.confusion(evaluation.labels) if evaluation.labels else "",
        swaps=_swaps(evaluation),
        titles={each.name: each.title for each in evaluation.contenders},
        colours=plots.COLOURS,
        criteria=CRITERIA,
    )


def _summary(evaluation: Evaluation) -> Iterator[str]:
    """What a reader takes away who reads nothing else."""
    gain = evaluation.differences["base"]
    new = evaluation.new.metrics
    main = "accuracy" if "accuracy" in new else "rouge_l"
    name = "accuracy" if main == "accuracy" else METRICS[main].title
    yield (
        f"On {evaluation.about.rows} questions that it was not trained on, {name} "
        f"is {METRICS[main].show(new[main].estimate)}; the base model alone has "
        f"{METRICS[main].show(evaluation.contenders[0].metrics[main].estimate)} "
        f"({METRICS[main].show_difference(gain[main].estimate)})."
    )
    if (champion := evaluation.differences.get("champion")) is not None:
        found = champion[main]
        how = "more than chance explains" if found.excludes_zero else "no more than chance explains"
        yield (
            f"Against the adapter that serves now: "
            f"{METRICS[main].show_difference(found.estimate)}, {how}."
        )
    forgetting = new["forgetting"]
    what = "it foresees worse" if forgetting.estimate > 0 else "it foresees no worse"
    yield (
        f"General English, which it was not trained on, {what} than the base: "
        f"{METRICS['forgetting'].show_difference(forgetting.estimate)} nats a token."
    )
    if "counterfactual_change" in new:
        change, control = new["counterfactual_change"], new["counterfactual_control"]
        yield (
            f"When only the writer's group changes, {100 * change.estimate:.1f} % of an answer "
            f"changes on average; with another name of the same group {100 * control.estimate:.1f} "
            "%."
        )


def _rows(evaluation: Evaluation) -> Iterator[_Row]:
    for name, metric in METRICS.items():
        if name not in evaluation.new.metrics:
            continue
        yield _Row(
            metric,
            tuple(_score(metric, each.metrics[name]) for each in evaluation.contenders),
            tuple(
                _difference(metric, differences[name])
                for differences in evaluation.differences.values()
            ),
        )


def _score(metric: Metric, value: Interval) -> _Cell:
    low, high = metric.show(value.low), metric.show(value.high)
    return _Cell(metric.show(value.estimate), f"{low} to {high}")


def _difference(metric: Metric, value: Interval) -> _Cell:
    tone = ""
    if value.excludes_zero and metric.better != "neither":
        tone = "good" if (value.estimate > 0) == (metric.better == "higher") else "bad"
    low, high = (
        f"{100 * end:+.1f}" if metric.is_share else metric.show_difference(end)
        for end in (value.low, value.high)
    )
    return _Cell(metric.show_difference(value.estimate), f"{low} to {high}", tone)


@dataclass(frozen=True, slots=True)
class _Swapped:
    about: str
    trials: int
    change: float
    control: float


def _swaps(evaluation: Evaluation) -> tuple[_Swapped, ...]:
    """The counterfactuals by what was swapped."""
    kinds = sorted({each.about for each in evaluation.counterfactuals})
    return tuple(
        _Swapped(
            kind,
            len(found),
            sum(each.change for each in found) / len(found),
            sum(each.control for each in found) / len(found),
        )
        for kind in kinds
        if (found := [each for each in evaluation.counterfactuals if each.about == kind])
    )
