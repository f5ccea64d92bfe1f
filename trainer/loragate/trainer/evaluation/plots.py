"""Pictures for the report, as SVG to put into a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from loragate.trainer.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from loragate.trainer.evaluation.evaluation import Evaluation, Labels
    from loragate.trainer.evaluation.statistics import Interval

COLOURS: Final = {"base": "#8a94a6", "champion": "#d9902f", "new": "#2f6fde"}
_SHARES: Final = ("accuracy", "exact_match", "stop_rate")
_POINTS: Final = ("bleu", "rouge_1", "rouge_2", "rouge_l")  # of 100


def quality(evaluation: Evaluation) -> str:
    """What goes from 0 to 100, for all contenders, with intervals."""
    present = evaluation.new.metrics
    names = [name for name in (*_SHARES, "f1", *_POINTS) if name in present]
    figure = Figure(figsize=(7.6, 0.52 * len(names) + 0.9))
    axes = figure.subplots()
    step = 0.22
    for place, contender in enumerate(evaluation.contenders):
        offset = (place - (len(evaluation.contenders) - 1) / 2) * step
        _draw(
            axes,
            [_percent(name, contender.metrics[name]) for name in names],
            offset,
            COLOURS[contender.name],
            contender.title,
        )
    axes.set_yticks(range(len(names)), [METRICS[name].title for name in names])
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    return _svg(figure, axes)


def losses(evaluation: Evaluation) -> str:
    """Loss on the test rows, and its change on general text."""
    figure = Figure(figsize=(7.6, 1.9))
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "forgetting")):
        for place, contender in enumerate(evaluation.contenders):
            value = contender.metrics[name]
            _draw(
                axes,
                [(value.estimate, value.low, value.high)],
                place,
                COLOURS[contender.name],
                contender.title,
            )
        axes.set_yticks(
            range(len(evaluation.contenders)), [each.name for each in evaluation.contenders]
        )
        axes.set_ylim(len(evaluation.contenders) - 0.5, -0.5)
        axes.set_title(f"{METRICS[name].title}, nats a token", fontsize=10, loc="left")
    right.axvline(0, color="#b8bfca", linewidth=1)
    return _svg(figure, left, right)


def confusion(labels: Labels) -> str:
    """Rows by wanted label, columns by said label, of the new adapter."""
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


def _draw(
    axes: Axes, values: Sequence[tuple[float, float, float]], offset: float, colour: str, title: str
) -> None:
    for place, (estimate, low, high) in enumerate(values):
        y = place + offset
        axes.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.55)
        axes.plot(estimate, y, "o", color=colour, markersize=6, label=None if place else title)


def _percent(name: str, value: Interval) -> tuple[float, float, float]:
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
