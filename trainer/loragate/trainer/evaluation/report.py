"""An evaluation as one HTML page that loads nothing from elsewhere, with its plots as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loragate.adapters.names import CHAMPION
from loragate.trainer.evaluation.contenders import TFIDF
from loragate.trainer.evaluation.evaluation import Evaluation, Labels, Ratings
from loragate.trainer.evaluation.judge_trust import judge_sentences
from loragate.trainer.evaluation.metrics import METRICS, Metric, main_metric
from loragate.trainer.evaluation.statistics import ConfidenceInterval
from loragate.trainer.run.folder import write_whole

COLOURS: Final = {
    "base": "#8a94a6",
    "examples": "#7a5af8",
    "retrieval": "#c11574",
    "first": "#b98a5a",
    "champion": "#d9902f",
    "tfidf": "#2a9d8f",
    "new": "#2f6fde",
}
_SHARES: Final = ("accuracy", "exact_match", "stop_rate")
_POINTS: Final = ("bleu", "rouge_1", "rouge_2", "rouge_l")  # of 100
_STEP: Final = 0.22  # between the systems of one metric
CONTENDERS: Final = ("examples", "retrieval", "tfidf")
FILE: Final = "report.html"


def quality_plot(evaluation: Evaluation) -> str:
    """SVG of the metrics between 0 and 100, for all systems, with intervals."""
    present = evaluation.new.metrics
    names = [name for name in (*_SHARES, "f1", *_POINTS) if name in present]
    step = _STEP * min(1.0, 4 / len(evaluation.systems))
    figure = Figure(figsize=(7.6, 0.52 * len(names) + 0.9 + 0.1 * len(evaluation.systems)))
    axes = figure.subplots()
    for place, system in enumerate(evaluation.systems):
        offset = (place - (len(evaluation.systems) - 1) / 2) * step
        _draw(
            axes,
            [_percent(name, system.metrics.get(name)) for name in names],
            offset,
            COLOURS[system.name],
            system.title,
        )
    axes.set_yticks(range(len(names)), [METRICS[name].title for name in names])
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    return _svg(figure, axes)


def losses_plot(evaluation: Evaluation) -> str:
    """SVG of the loss on the test rows, and of its change on general text."""
    systems = [each for each in evaluation.systems if "loss" in each.metrics]
    figure = Figure(figsize=(7.6, 1.9))
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "forgetting")):
        for place, system in enumerate(systems):
            value = system.metrics[name]
            _draw(
                axes,
                [(value.estimate, value.low, value.high)],
                place,
                COLOURS[system.name],
                system.title,
            )
        axes.set_yticks(range(len(systems)), [each.name for each in systems])
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_title(f"{METRICS[name].title}, nats a token", fontsize=10, loc="left")
    right.axvline(0, color="#b8bfca", linewidth=1)
    return _svg(figure, left, right)


def confusion_plot(labels: Labels) -> str:
    """SVG of the new adapter's answers: a row for each wanted label, a column for each given."""
    names = [score.label for score in labels.scores]
    columns = [*names, "none"]
    size = 0.55 * len(columns) + 1.8
    figure = Figure(figsize=(size + 0.8, size))
    axes = figure.subplots()
    axes.imshow(labels.confusion, cmap="Blues", aspect="auto")
    largest = max((count for row in labels.confusion for count in row), default=0)
    for y, row in enumerate(labels.confusion):
        for x, count in enumerate(row):
            colour = "white" if count > largest / 2 else "#333"
            axes.text(x, y, str(count), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("said")
    axes.set_ylabel("wanted")
    return _svg(figure)


def ratings_plot(evaluation: Evaluation, ratings: Ratings) -> str:
    """SVG of what people say: each criterion's scale from its worst to its best number."""
    criteria = [each for each in evaluation.criteria if each.name in ratings.of("new")]
    figure = Figure(figsize=(7.6, 0.52 * len(criteria) + 0.9))
    axes = figure.subplots()
    for place, system in enumerate(evaluation.systems):
        values = [
            _on_scale(ratings.of(system.name).get(each.name), each.low, each.high)
            for each in criteria
        ]
        offset = (place - (len(evaluation.systems) - 1) / 2) * _STEP
        _draw(axes, values, offset, COLOURS[system.name], system.title)
    axes.set_yticks(range(len(criteria)), [each.title for each in criteria])
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xticks([0, 100], ["worst", "best"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    return _svg(figure, axes)


def _on_scale(
    value: ConfidenceInterval | None, low: int, high: int
) -> tuple[float, float, float] | None:
    if value is None:
        return None
    found = [100 * (each - low) / (high - low) for each in (value.estimate, value.low, value.high)]
    return found[0], found[1], found[2]


def _draw(
    axes: Axes,
    values: Sequence[tuple[float, float, float] | None],
    offset: float,
    colour: str,
    title: str,
) -> None:
    """A dot and its interval for each value that there is."""
    label = title
    for place, value in enumerate(values):
        if value is None:
            continue
        estimate, low, high = value
        y = place + offset
        axes.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.55)
        axes.plot(estimate, y, "o", color=colour, markersize=6, label=label)
        label = "_"  # the legend names it once


def _percent(name: str, value: ConfidenceInterval | None) -> tuple[float, float, float] | None:
    if value is None:
        return None
    factor = 1 if name in _POINTS else 100
    return factor * value.estimate, factor * value.low, factor * value.high


def _svg(figure: Figure, *plain: Axes) -> str:
    for axes in plain:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#e6e9ee")
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
    figure.tight_layout()
    written = io.StringIO()
    # Without a date the same evaluation gives the same page.
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


@dataclass(frozen=True, slots=True)
class _Cell:
    """A number with its interval under it; `tone` is good, bad or empty."""

    text: str
    interval: str
    tone: str = ""


_NOTHING: Final = _Cell("none", "")


@dataclass(frozen=True, slots=True)
class _Row:
    metric: Metric
    scores: tuple[_Cell, ...]
    differences: tuple[_Cell, ...]


Training = tuple[str, str, str]
"""A system that was trained, or "" for a way that was only estimated; its title; what it takes."""


def write_report(evaluation: Evaluation, folder: Path, trainings: Sequence[Training] = ()) -> Path:
    """Writes report.html and returns its path. Raises RunFolderError."""
    path = folder / FILE
    write_whole(path, render_report(evaluation, trainings).encode())
    return path


def render_report(evaluation: Evaluation, trainings: Sequence[Training] = ()) -> str:
    """The page. `trainings` are what training took, or would take, of systems and other ways."""
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
        requirements=evaluation.requirements,
        summary=tuple(_summary(evaluation)),
        baselines=tuple(evaluation.differences),
        rows=tuple(_rows(evaluation)),
        ways=(*_ways(evaluation, trainings), *_estimated(trainings)),
        sets=tuple(_sets(evaluation)),
        main=METRICS[main_metric(evaluation.new.metrics)],
        quality=quality_plot(evaluation),
        losses=losses_plot(evaluation),
        confusion=confusion_plot(evaluation.labels) if evaluation.labels else "",
        swaps=_swaps(evaluation),
        titles={each.name: each.title for each in evaluation.systems},
        colours=COLOURS,
        criteria=evaluation.criteria,
        ratings=evaluation.ratings,
        judges=tuple(
            (each.name, tuple(judge_sentences(evaluation, each))) for each in evaluation.judges
        ),
        rated_plot=ratings_plot(evaluation, evaluation.ratings) if evaluation.ratings else "",
    )


def _summary(evaluation: Evaluation) -> Iterator[str]:
    """The result in three or four sentences."""
    gain = evaluation.differences["base"]
    new = evaluation.new.metrics
    main = main_metric(evaluation.new.metrics)
    name = "accuracy" if main == "accuracy" else METRICS[main].title
    yield (
        f"On {evaluation.about.rows} questions that it was not trained on, {name} "
        f"is {METRICS[main].show(new[main].estimate)}; the base model alone has "
        f"{METRICS[main].show(evaluation.systems[0].metrics[main].estimate)} "
        f"({METRICS[main].show_difference(gain[main].estimate)})."
    )
    if evaluation.caution:
        yield evaluation.caution
    if evaluation.about.left_out:
        yield evaluation.about.left_out
    yield from _far(evaluation, main)
    yield from _against_contenders(evaluation, main)
    if (champion := evaluation.differences.get(CHAMPION)) is not None:
        found = champion[main]
        how = "more than chance explains" if found.excludes_zero else "no more than chance explains"
        yield (
            f"Against the adapter that serves now: "
            f"{METRICS[main].show_difference(found.estimate)}, {how}."
        )
    forgetting = new["forgetting"]
    what = "it predicts worse" if forgetting.estimate > 0 else "it predicts no worse"
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


def _far(evaluation: Evaluation, main: str) -> Iterator[str]:
    far = next((each for each in evaluation.sets if each.name == "far"), None)
    if far is not None and main in far.systems[-1].metrics:
        yield (
            f"On the {far.rows} of them that are far from every train row it is "
            f"{METRICS[main].show(far.systems[-1].metrics[main].estimate)}."
        )


def _against_contenders(evaluation: Evaluation, main: str) -> Iterator[str]:
    """Whether the adapter is worth its training."""
    ways = [each for each in evaluation.systems if each.name in CONTENDERS]
    if not ways:
        return
    best = max(ways, key=lambda each: each.metrics[main].estimate)
    found = evaluation.differences[best.name][main]
    metric = METRICS[main]
    how = "more than chance explains" if found.excludes_zero else "no more than chance explains"
    yield (
        f"The best way without training a model ({best.title}) has "
        f"{metric.show(best.metrics[main].estimate)}: the adapter is at "
        f"{metric.show_difference(found.estimate)} to it, {how}."
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to get answers, with its quality and what a request takes."""

    title: str
    quality: _Cell
    prompt: str
    answer: str
    money: str
    training: str


def _ways(evaluation: Evaluation, trainings: Sequence[Training]) -> tuple[_Way, ...]:
    took = {"new": "not known", TFIDF: "about a second", "first": "earlier", CHAMPION: "earlier"}
    took |= {system: takes for system, _, takes in trainings if system}
    main = main_metric(evaluation.new.metrics)
    return tuple(
        _Way(
            each.title,
            _score(METRICS[main], each.metrics.get(main)),
            _tokens(each.metrics.get("prompt")),
            _tokens(each.metrics.get("length")),
            f"{1000 * each.request_money:,.4g}" if each.request_money else "not priced",
            took.get(each.name, "none"),
        )
        for each in evaluation.systems
    )


def _estimated(trainings: Sequence[Training]) -> Iterator[_Way]:
    """Ways that were not measured here, of which it is known what their training takes."""
    for system, title, takes in trainings:
        if not system:
            yield _Way(title, _Cell("not measured", "a run of its own would"), "", "", "", takes)


@dataclass(frozen=True, slots=True)
class _Set:
    """The main metric of all systems on other rows."""

    title: str
    rows: int
    metric: str
    cells: tuple[_Cell, ...]


def _sets(evaluation: Evaluation) -> Iterator[_Set]:
    for each in evaluation.sets:
        main = main_metric(each.systems[-1].metrics)
        found = {system.name: system.metrics.get(main) for system in each.systems}
        cells = (_score(METRICS[main], found.get(system.name)) for system in evaluation.systems)
        yield _Set(each.title, each.rows, METRICS[main].title, tuple(cells))


def _tokens(value: ConfidenceInterval | None) -> str:
    return f"{value.estimate:,.0f}" if value is not None else "none"


def _rows(evaluation: Evaluation) -> Iterator[_Row]:
    compared = {name for found in evaluation.differences.values() for name in found}
    for name, metric in {**METRICS, **evaluation.own}.items():
        if name not in evaluation.new.metrics and name not in compared:
            continue
        yield _Row(
            metric,
            tuple(_score(metric, each.metrics.get(name)) for each in evaluation.systems),
            tuple(
                _difference(metric, differences.get(name))
                for differences in evaluation.differences.values()
            ),
        )


def _score(metric: Metric, value: ConfidenceInterval | None) -> _Cell:
    if value is None:
        return _NOTHING
    low, high = metric.show(value.low), metric.show(value.high)
    return _Cell(metric.show(value.estimate), f"{low} to {high}")


def _difference(metric: Metric, value: ConfidenceInterval | None) -> _Cell:
    if value is None:
        return _NOTHING
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
    rows: int
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
