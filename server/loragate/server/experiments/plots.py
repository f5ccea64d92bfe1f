"""The report's plots, as SVG to put into a page."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from loragate.server.experiments.gates import Gate
from loragate.server.experiments.svg import drawn
from loragate.server.experiments.tally import ArmTally

_BLUE, _GREY, _RED = "#2463a6", "#8a94a0", "#b3392f"


@drawn
def plot_arms(arms: Sequence[ArmTally]) -> Figure:
    """Units that each arm got, beside those that it was to get."""
    figure = Figure(figsize=(7, 0.7 + 0.45 * len(arms)), layout="constrained")
    axes = figure.subplots()
    total = sum(arm.units for arm in arms)
    trial_router = np.arange(len(arms))[::-1]
    axes.barh(trial_router, [arm.units for arm in arms], 0.55, color=_BLUE, label="units")
    axes.plot(
        [arm.share * total for arm in arms],
        trial_router,
        "|",
        color=_RED,
        ms=22,
        mew=2,
        label="expected",
    )
    axes.set_yticks(trial_router, [arm.name for arm in arms])
    axes.set_xlabel("units")
    axes.margins(x=0.08)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=0.5)
    _tidy(axes)
    return figure


@drawn
def plot_curve(
    gate: Gate,
    units: Sequence[int],
    estimates: Sequence[float],
    lowers: Sequence[float],
    uppers: Sequence[float],
) -> Figure:
    """The estimate and its limits as units came in, with the gate's bound."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    low, high = _window(gate, estimates, lowers, uppers)
    scale = _scale(gate)
    bottoms = np.clip(np.array(lowers), low, high) * scale
    tops = np.clip(np.array(uppers), low, high) * scale
    axes.fill_between(units, bottoms, tops, color=_BLUE, alpha=0.18, lw=0, label="limits")
    axes.plot(units, np.array(estimates) * scale, color=_BLUE, lw=1.8, label="estimate")
    axes.axhline(gate.bound * scale, color=_RED, lw=1.4, ls="--", label=f"bound of {gate}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(low * scale, high * scale)
    axes.set_xlabel("units of the challenger")
    axes.set_ylabel(_label(gate))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    _tidy(axes)
    return figure


def _window(
    gate: Gate, estimates: Sequence[float], lowers: Sequence[float], uppers: Sequence[float]
) -> tuple[float, float]:
    """What to show: early limits may be infinite, or so wide that nothing else could be seen."""
    late = [*lowers[len(lowers) // 2 :], *uppers[len(uppers) // 2 :], *estimates, gate.bound]
    finite = [value for value in late if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = 0.15 * (high - low) or abs(high) or 1.0
    return low - room, high + room


def _scale(gate: Gate) -> float:
    if gate.against == "ratio":
        return 1.0
    return {"share": 100.0, "time": 1000.0}.get(gate.metric.kind, 1.0)


def _label(gate: Gate) -> str:
    if gate.against == "ratio":
        return "times the champion's"
    unit = {"share": "%", "time": "ms"}.get(gate.metric.kind, "")
    if gate.against == "difference":
        return f"difference {unit}".strip()
    return f"{gate.metric.name} {unit}".strip()


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors="#444c55", labelsize=9)
