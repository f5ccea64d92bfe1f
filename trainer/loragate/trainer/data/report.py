"""One HTML page about data, complete in itself: for whoever answers for what an adapter learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from loragate.trainer.data import plots
from loragate.trainer.data.cleaning import RULES, Cleaned, Drop
from loragate.trainer.data.example import DataError
from loragate.trainer.data.judging import Judgement
from loragate.trainer.data.reading import Read
from loragate.trainer.data.settings import DataSettings
from loragate.trainer.data.split_folder import SplitFolder

SAMPLES = 5  # of dropped rows, for each rule
_PACKAGES = ("loragate", "datasketch", "ftfy", "phonenumbers", "py3langid", "python-stdnum",
             "scikit-learn", "scipy")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plot:
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
    """What the page is made of. `folder` is None where nothing was split."""

    title: str
    digest: str
    read: Read
    cleaned: Cleaned
    judgement: Judgement
    settings: DataSettings
    folder: SplitFolder | None = None

    def to_json(self) -> dict[str, object]:
        """The page's figures, for programs."""
        return {
            "digest": self.digest,
            "rows_read": self.cleaned.rows_read,
            "rows_kept": len(self.cleaned.rows),
            **account_of(self.cleaned),
            "judgement": self.judgement.to_json(),
            "splits": self.folder.sheet["splits"] if self.folder else None,
        }

    def to_html(self) -> str:
        page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                           lstrip_blocks=True)  # fmt: skip
        text = files("loragate.trainer.data").joinpath("report.html.jinja").read_text("utf-8")
        rules = self._rules()
        return page.from_string(text).render(
            report=self,
            judgement=self.judgement,
            cleaned=self.cleaned,
            rules=rules,
            plots=self._plots(rules),
            splits=self._split_rows(),
            settings=_flat(self.settings.to_json()),
            packages=package_versions(),
        )

    def write(self, path: Path) -> None:
        """Raises DataError where the disk refuses."""
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

    def _split_rows(self) -> list[tuple[str, int]]:
        splits = self.folder.splits if self.folder else {}
        return [(name, len(rows)) for name, rows in splits.items()]

    def _plots(self, rules: Sequence[_Rule]) -> dict[str, Plot]:
        judged, drawn = self.judgement, dict[str, Plot]()
        if rules:
            drawn["drops"] = _plot(
                "Rows that went, by rule",
                "A row goes by the first rule that catches it.",
                plots.bars(
                    [rule.name for rule in rules], [rule.count for rule in rules], is_half=False
                ),
            )
        if judged.labels:
            names, counts = zip(*judged.labels, strict=True)
            drawn["labels"] = _plot(
                "Rows by label", "What the adapter is to tell apart.", plots.bars(names, counts)
            )
        if judged.topics:
            drawn["topics"] = _plot(
                "What the questions are about",
                "Clusters of words that come together, named by the words that tell them apart.",
                plots.bars([t.name for t in judged.topics], [t.rows for t in judged.topics]),
            )
        # Equal lengths, as those of labels, make no picture.
        if len(set(judged.lengths.questions)) > 1:
            drawn["questions"] = _plot(
                "Length of the questions",
                "",
                plots.histogram(judged.lengths.questions, label="words"),
            )
        if len(set(judged.lengths.answers)) > 1:
            drawn["answers"] = _plot(
                "Length of the answers",
                "",
                plots.histogram(judged.lengths.answers, label="words"),
            )
        if judged.tokens:
            drawn["tokens"] = _plot(
                "Tokens of each row",
                "With the base model's tokenizer and chat template.",
                plots.histogram(judged.tokens.per_row, label="tokens", limit=judged.tokens.limit),
            )
        if judged.associations:
            told = judged.associations[:10]
            drawn["associations"] = _plot(
                "What goes together with the mention of a group",
                "Right of 1: more often than in rows that do not name the group.",
                plots.intervals(
                    [f"{one.group}: {one.trait}" for one in told],
                    [one.odds_ratio for one in told],
                    [one.low for one in told],
                    [one.high for one in told],
                ),
            )
        return drawn


def account_of(cleaned: Cleaned) -> dict[str, object]:
    """What cleaning did, rule by rule, with samples."""
    return {
        "drops": {
            rule: {
                "count": len(drops),
                "meaning": RULES[rule],
                "samples": [drop.to_json() for drop in drops[:SAMPLES]],
            }
            for rule, drops in cleaned.drops_by_rule().items()
        },
        "mended_rows": cleaned.mended,
        "masked_rows": cleaned.masked_rows,
        "masked": dict(cleaned.masked.most_common()),
        "languages": dict(cleaned.languages.most_common()),
        "conflicting_rows_kept": cleaned.conflicts_kept,
        "labels_from_answers": cleaned.are_labels_found,
    }


def package_versions() -> dict[str, str]:
    """Of what decides the result."""
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
