"""One HTML page about data that loads nothing from elsewhere, with its plots as SVG.

Plots are made without pyplot, which needs a display and keeps global state.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from loragate.trainer.data.cleaning import RULES, Change, Cleaned, Drop
from loragate.trainer.data.example import DataError
from loragate.trainer.data.quality import Quality
from loragate.trainer.data.reading import Read
from loragate.trainer.data.settings import PreparationSettings
from loragate.trainer.data.splits import SplitFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Quantities are in one colour, all else in grey.
ACCENT, MUTED, INK, GRID = "#3b6fb6", "#b9c2cf", "#2b3440", "#e6eaf0"
_BARS = 12
_FULL, _HALF = 7.6, 4.9  # inches: a plot as wide as the page, and one beside another
_LONGEST_NAME = 34
_LIMIT_SHOWN = 2  # times the longest row; a limit further off would squeeze the bars
SAMPLES = 5  # of dropped rows, for each rule
CHANGES = 15  # rows of each kind of change that the page shows
_PACKAGES = ("loragate", "datasketch", "ftfy", "phonenumbers", "py3langid", "python-stdnum",
             "scikit-learn", "scipy")  # fmt: skip


def bar_plot(names: Sequence[str], counts: Sequence[int], *, is_half: bool = True) -> str:
    """SVG of horizontal bars, the first on top, each with its count."""
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
    """SVG of the distribution of the values, with a line at `limit` where one is given."""
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


def interval_plot(
    names: Sequence[str], middles: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> str:
    """SVG of odds ratios with intervals on a logarithmic axis; 1, no association, is marked."""
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


def _figure(height: float, width: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # slow to import, and of no use without a page

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _svg(figure: "Figure") -> str:
    """The SVG element, without a date and with ids from a fixed salt: equal plots, equal text."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loragate"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]


def _short(name: str) -> str:
    # A dollar begins mathematics in matplotlib.
    name = name.replace("$", r"\$")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as the page shows it."""

    title: str
    about: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class _Rule:
    """What one rule dropped, as the page shows it."""

    name: str
    meaning: str
    count: int
    share: float
    samples: Sequence[Drop]


@dataclass(frozen=True, slots=True)
class Report:
    """What the page shows. `folder` is None where nothing was split."""

    title: str
    digest: str
    read: Read
    cleaned: Cleaned
    quality: Quality
    settings: PreparationSettings
    folder: SplitFolder | None = None

    def to_json(self) -> dict[str, object]:
        """The page's figures, for programs."""
        return {
            "digest": self.digest,
            "rows_read": self.cleaned.rows_read,
            "rows_kept": len(self.cleaned.rows),
            **account_of(self.cleaned),
            "quality": self.quality.to_json(),
            "splits": self.folder.sheet["splits"] if self.folder else None,
        }

    def to_html(self) -> str:
        """The page; equal reports give equal pages."""
        page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                           lstrip_blocks=True)  # fmt: skip
        text = files("loragate.trainer.data").joinpath("report.html.jinja").read_text("utf-8")
        rules = self._rules()
        return page.from_string(text).render(
            report=self,
            quality=self.quality,
            cleaned=self.cleaned,
            rules=rules,
            changes=self._changes(),
            plots=self._plots(rules),
            splits=self._split_rows(),
            settings=_flat(self.settings.to_json()),
            packages=package_versions(),
        )

    def write(self, path: Path) -> None:
        """Writes the page. Raises DataError where that fails."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.to_html(), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error

    def _rules(self) -> list[_Rule]:
        return [
            _Rule(rule.replace("_", " "), RULES[rule], len(drops),
                  len(drops) / self.cleaned.rows_read, drops[:SAMPLES])
            for rule, drops in self.cleaned.drops_by_rule().items()
        ]  # fmt: skip

    def _changes(self) -> list[tuple[str, int, Sequence[Change]]]:
        kinds = Counter(change.kind for change in self.cleaned.changes)
        return [
            (kind, count, [c for c in self.cleaned.changes if c.kind == kind][:CHANGES])
            for kind, count in kinds.most_common()
        ]

    def _split_rows(self) -> list[tuple[str, int]]:
        splits = self.folder.splits if self.folder else {}
        return [(name, len(rows)) for name, rows in splits.items()]

    def _plots(self, rules: Sequence[_Rule]) -> dict[str, Plot]:
        quality, drawn = self.quality, dict[str, Plot]()
        if rules:
            drawn["drops"] = _plot(
                "Rows that went, by rule",
                "A row goes by the first rule that catches it.",
                bar_plot(
                    [rule.name for rule in rules], [rule.count for rule in rules], is_half=False
                ),
            )
        if quality.labels:
            names, counts = zip(*quality.labels, strict=True)
            drawn["labels"] = _plot(
                "Rows by label", "What the adapter is to tell apart.", bar_plot(names, counts)
            )
        if quality.topics:
            drawn["topics"] = _plot(
                "What the questions are about",
                "Clusters of words that come together, named by the words that tell them apart.",
                bar_plot([t.name for t in quality.topics], [t.rows for t in quality.topics]),
            )
        # Equal lengths, as those of labels, make no picture.
        if len(set(quality.lengths.questions)) > 1:
            drawn["questions"] = _plot(
                "Length of the questions",
                "",
                histogram(quality.lengths.questions, label="words"),
            )
        if len(set(quality.lengths.answers)) > 1:
            drawn["answers"] = _plot(
                "Length of the answers",
                "",
                histogram(quality.lengths.answers, label="words"),
            )
        if quality.tokens:
            drawn["tokens"] = _plot(
                "Tokens of each row",
                "With the base model's tokenizer and chat template.",
                histogram(quality.tokens.per_row, label="tokens", limit=quality.tokens.limit),
            )
        if quality.associations:
            told = quality.associations[:10]
            drawn["associations"] = _plot(
                "What goes together with the mention of a group",
                "Right of 1: more often than in rows that do not name the group.",
                interval_plot(
                    [f"{one.group}: {one.trait}" for one in told],
                    [one.odds_ratio for one in told],
                    [one.low for one in told],
                    [one.high for one in told],
                ),
            )
        return drawn


def account_of(cleaned: Cleaned) -> dict[str, object]:
    """What cleaning dropped, by rule and with samples, and what it changed; for JSON."""
    return {
        "drops": {
            rule: {
                "count": len(drops),
                "meaning": RULES[rule],
                "samples": [drop.to_json() for drop in drops[:SAMPLES]],
            }
            for rule, drops in cleaned.drops_by_rule().items()
        },
        "normalised_rows": cleaned.normalised_rows,
        "masked_rows": cleaned.masked_rows,
        "masked_answers": cleaned.masked_answers,
        "kept_in_answers": cleaned.kept_in_answers,
        "mended": dict(
            Counter(
                what
                for change in cleaned.changes
                if change.kind == "mended"
                for what in change.what
            ).most_common()
        ),
        "masked": dict(cleaned.masked.most_common()),
        "languages": dict(cleaned.languages.most_common()),
        "conflicting_rows_kept": cleaned.conflicts_kept,
        "labels_from_answers": cleaned.are_labels_found,
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that the result depends on."""
    return {name: version(name) for name in _PACKAGES}


def _plot(title: str, about: str, svg: str) -> Plot:
    return Plot(title, about, Markup(svg))  # matplotlib escapes what it writes


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    return {
        f"{section}.{name}": value
        for section, values in settings.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }
