"""A report's pictures, as PNG files."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from loadtests.measures import by_adapter, knee, percentiles, steps, whole
from loadtests.records import Run

_WIDTH_INCHES, _HEIGHT_INCHES = 9.0, 3.6
_MOST_NAMES = 24
_BLUE, _ORANGE, _GREY, _RED = "#2563a8", "#d97706", "#8a8f98", "#b91c1c"


def draw_latency(run: Run, path: Path) -> None:
    """Every answer's time to first token and longest gap, by when it was to be sent."""

    def draw(axes: Axes) -> None:
        answered = [sample for sample in whole(run.samples) if sample.frames]
        at = [sample.intended for sample in answered]
        firsts = [(sample.ttft_seconds or 0.0) * 1000 for sample in answered]
        stalls = [max(sample.gaps_seconds, default=0.0) * 1000 for sample in answered]
        axes.scatter(at, firsts, s=9, color=_BLUE, label="time to first token")
        axes.scatter(at, stalls, s=9, color=_ORANGE, label="longest gap between tokens")
        for number, swap in enumerate(run.swaps):
            label = "an alias moves" if number == 0 else None
            axes.axvspan(
                swap.asked, swap.served or swap.asked + 0.2, color=_RED, alpha=0.25, label=label
            )
        for stop in run.stops:
            axes.axvline(stop.at, color=_RED, label="SIGTERM")
        _mark_phases(run, axes)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axes.set_ylabel("ms")
        axes.set_xlabel("seconds since the start")

    _save(draw, path)


def draw_throughput_over_time(run: Run, path: Path) -> None:
    """Tokens that arrived, and requests under way, second by second."""

    def draw(axes: Axes) -> None:
        end = int(max((sample.ended for sample in run.samples), default=0.0)) + 1
        tokens = [0] * end
        under_way = [0] * end
        for sample in run.samples:
            for at, count in zip(sample.frames, sample.tokens, strict=True):
                tokens[min(int(at), end - 1)] += count
            for second in range(int(sample.sent), min(int(sample.ended) + 1, end)):
                under_way[second] += 1
        axes.plot(range(end), tokens, color=_BLUE, label="tokens a second")
        axes.plot(range(end), under_way, color=_GREY, label="requests under way")
        for swap in run.swaps:
            axes.axvline(swap.asked, color=_RED, alpha=0.4)
        _mark_phases(run, axes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the start")

    _save(draw, path)


def draw_rates(run: Run, path: Path, least_goodput: float) -> None:
    """What came out for what was asked, step by step, with the knee."""

    def draw(axes: Axes) -> None:
        found = steps(run)
        offered = [step.offered_per_second for step in found]
        axes.plot(offered, offered, color=_GREY, linestyle=":", label="as much as was asked")
        answered = [step.answered_per_second for step in found]
        axes.plot(offered, answered, color=_BLUE, marker="o", label="answered a second")
        good = [step.goodput * step.offered_per_second for step in found]
        axes.plot(offered, good, color=_ORANGE, marker="o", label="in time a second")
        if (bend := knee(found, least_goodput)) is not None:
            axes.axvline(bend.offered_per_second, color=_RED, alpha=0.5, label="knee")
        axes.set_xlabel("requests asked for a second")
        axes.set_ylim(bottom=0)

    _save(draw, path)


def draw_adapters(run: Run, path: Path) -> None:
    """Times to first token by adapter: medians, and what 95 of 100 stayed below."""
    names: list[str] = []
    medians: list[float] = []
    tails: list[float] = []
    groups = by_adapter(whole(run.samples))
    busiest = sorted(groups.items(), key=lambda group: -len(group[1]))[:_MOST_NAMES]
    for (tenant, adapter), samples in busiest:
        found = percentiles(sample.ttft_seconds for sample in samples)
        if found is not None:
            names.append(f"{adapter if '/' in adapter else f'{tenant}: {adapter}'} ({found.count})")
            medians.append(found.p50 * 1000)
            tails.append(found.p95 * 1000)

    def draw(axes: Axes) -> None:
        rows = range(len(names))
        axes.barh(rows, tails, color=_ORANGE, alpha=0.45, label="p95")
        axes.barh(rows, medians, color=_BLUE, height=0.45, label="p50")
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set_xlabel("time to first token, ms")

    _save(draw, path, height_inches=1.4 + 0.3 * len(names))


def _mark_phases(run: Run, axes: Axes) -> None:
    if len(run.phases) == 1:
        return
    for phase in run.phases:
        axes.axvline(phase.at, color=_GREY, linewidth=0.6)
        axes.annotate(
            phase.name,
            (phase.at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            color=_GREY,
            fontsize=8,
        )


def _save(
    draw: Callable[[Axes], None], path: Path, *, height_inches: float = _HEIGHT_INCHES
) -> None:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    # Below the axes, where it hides no point.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
