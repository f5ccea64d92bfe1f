"""A comparison's plots as SVG, so that the page needs nothing else."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loragate.server.comparison.agreement import Agreement
from loragate.server.comparison.comparing import Measurement
from loragate.server.experiments.svg import drawn

_COLOURS = ("#8a94a0", "#2463a6", "#2e7d4f")  # base, unmerged, merged


@drawn
def plot_speeds(measured: Sequence[Measurement]) -> Figure:
    """Tokens a second, time to the first token and between tokens, by streams at once."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title, of in (
        (panels[0], "tokens/s (more is better)", lambda speed: speed.tokens_per_second),
        (panels[1], "first token, ms", lambda speed: 1000 * speed.ttft),
        (panels[2], "between tokens, ms", lambda speed: 1000 * speed.inter_token),
    ):
        streams = [speed.streams for speed in measured[0].speeds]
        places = np.arange(len(streams))
        for i, (one, colour) in enumerate(zip(measured, _COLOURS, strict=True)):
            bars = axes.bar(
                places + 0.27 * (i - 1), [of(s) for s in one.speeds], 0.25, color=colour
            )
            axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
            bars.set_label(one.name)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(places, [f"{n} stream{'s' * (n > 1)}" for n in streams])
        axes.margins(y=0.15)
        _tidy(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=3, loc="outside lower center", fontsize=9)
    return figure


@drawn
def plot_memory(measured: Sequence[Measurement]) -> Figure:
    figure = Figure(figsize=(9, 1.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(measured))[::-1]
    bars = axes.barh(places, [m.memory_bytes / 2**20 for m in measured], 0.6, color=_COLOURS)
    axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=3)
    axes.set_yticks(places, [one.name for one in measured])
    axes.set_xlabel("memory, MiB")
    axes.margins(x=0.1)
    _tidy(axes)
    return figure


@drawn
def plot_divergence(merged: Agreement, base: Agreement) -> Figure:
    """The distribution of KL divergences: how far merging moves, and how far the adapter did."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    for agreement, name, colour in (
        (merged, "merged beside the version", _COLOURS[2]),
        (base, "base model beside the version", _COLOURS[0]),
    ):
        values = np.sort(np.maximum(agreement.kls, 1e-10))
        share = np.arange(1, len(values) + 1) / len(values)
        axes.plot(values, 100 * share, color=colour, lw=2, label=name, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_xlabel("KL divergence of the next token, nats")
    axes.set_ylabel("positions, % up to this")
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    return figure


@drawn
def plot_lengths(merged: Agreement) -> Figure:
    """Of each prompt's greedy answer, how much is the same from its beginning."""
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(1, len(merged.divergences) + 1)
    axes.bar(places, [d.tokens for d in merged.divergences], 0.7, color="#dfe3e8", label="answer")
    same = [d.same_tokens for d in merged.divergences]
    axes.bar(places, same, 0.7, color=_COLOURS[2], label="the same, from its beginning")
    axes.set_xticks(places)
    axes.set_xlabel("prompt")
    axes.set_ylabel("tokens")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    _tidy(axes)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_COLOURS[0])
    axes.tick_params(colors="#444c55", labelsize=9)
