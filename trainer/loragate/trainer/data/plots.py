"""Plots as SVG text that stands in a page by itself; no display and no global state of pyplot."""

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# One hue for quantities; grey for the rest, so that what matters is what has colour.
ACCENT, MUTED, INK, GRID = "#3b6fb6", "#b9c2cf", "#2b3440", "#e6eaf0"
_BARS = 12
_FULL, _HALF = 7.6, 4.9  # inches: a plot as wide as the page, and one beside another
_LONGEST_NAME = 34
_LIMIT_SHOWN = 2  # times the longest row; a limit further off would squeeze the bars


def bars(names: Sequence[str], counts: Sequence[int], *, is_half: bool = True) -> str:
    """Horizontal bars, the first on top, each with its figure."""
    names, counts = names[:_BARS], counts[:_BARS]
    figure, axes = _figure(0.3 * len(names) + 0.1, _HALF if is_half else _FULL)
    places = np.arange(len(names))[::-1]
    axes.barh(places, counts, color=ACCENT, height=0.62)
    axes.set_yticks(places, [_short(name) for name in names])
    axes.set_xlim(0, max(counts) * 1.14)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for place, count in zip(places, counts, strict=True):
        axes.annotate(
            f"{count:,}", (count, place), (4, 0), textcoords="offset points", va="center",
            color=INK, fontsize=9,
        )  # fmt: skip
    return _svg(figure)


def histogram(values: Sequence[int], *, label: str, limit: int | None = None) -> str:
    """How values are spread, with a line at `limit` where one is given."""
    figure, axes = _figure(2.2, _HALF)
    # The last percent is gathered at the end, so that one long row does not flatten the rest.
    end = max(float(np.percentile(values, 99)), min(values) + 1.0)
    if limit is not None and limit < _LIMIT_SHOWN * max(values):
        end = max(end, limit)
    if limit is not None and limit > end:
        label = f"{label}, far from the limit of {limit:,}"
    if end < max(values):
        label = f"{label}\nthe last bar also holds what is longer, to {max(values):,}"
    clipped = np.minimum(values, end)
    bins = np.histogram_bin_edges(clipped, bins=min(40, max(5, int(end - min(values)) + 1)))
    axes.hist(clipped, bins=[float(edge) for edge in bins], color=ACCENT, rwidth=0.9)
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel("rows", fontsize=9, color=INK)
    axes.yaxis.grid(visible=True, color=GRID)
    axes.set_axisbelow(True)
    if limit is not None and limit <= end:
        axes.axvline(limit, color="#b3402e", linewidth=1.4)
        axes.annotate(
            f"limit {limit:,}", (limit, axes.get_ylim()[1]), (-4, -10), color="#b3402e",
            textcoords="offset points", fontsize=9, ha="right",
        )  # fmt: skip
    return _svg(figure)


def intervals(
    names: Sequence[str], middles: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> str:
    """Odds ratios with their intervals on a logarithmic axis, 1 (no association) marked."""
    figure, axes = _figure(0.36 * len(names) + 0.65, _FULL)
    places = np.arange(len(names))[::-1]
    axes.axvline(1, color=MUTED, linewidth=1.2)
    axes.hlines(places, lows, highs, color=ACCENT, linewidth=2)
    axes.plot(middles, places, "o", color=ACCENT, markersize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_yticks(places, [_short(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "odds ratio with 95 % interval; 1 means that they have nothing to do with each other",
        fontsize=9,
        color=INK,
    )
    return _svg(figure)


def _figure(height: float, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The same plot is the same text: no date in it, and ids from a fixed salt."""
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loragate"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]


def _short(name: str) -> str:
    # A dollar begins mathematics in matplotlib.
    name = name.replace("$", r"\$")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
