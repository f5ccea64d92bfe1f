"""The result of an evaluation as one value, which evaluation.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.agreement import Agreement
from loragate.trainer.evaluation.counterfactuals import Outcome
from loragate.trainer.evaluation.criteria import USUAL, Criterion
from loragate.trainer.evaluation.metrics import METRICS, RATED, Metric, rated
from loragate.trainer.evaluation.requirements import (
    UNCHECKED,
    Requirement,
    RequirementResults,
    check_requirements,
)
from loragate.trainer.evaluation.statistics import ConfidenceInterval, share_interval, unseen_share
from loragate.trainer.run.folder import write_whole

FILE: Final = "evaluation.json"
_ENOUGH_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class About:
    """What was evaluated, on which data and with which settings: enough to repeat it.

    `rows` of the `test_rows` were asked. Digests are as their makers write them; `seconds` is the
    duration of the evaluation.
    """

    title: str
    base_model: str
    base_model_digest: str
    data_digest: str
    rows: int
    test_rows: int
    general_paragraphs: int
    seed: int
    confidence: float
    resamples: int
    max_tokens: int
    bleu_signature: str
    served_by: str
    finished_at: str
    seconds: float
    currency: str = ""
    left_out: str = ""  # which test rows were not asked, since something had been trained on them


@dataclass(frozen=True, slots=True)
class SystemScores:
    """`name` is that of requirements, such as base, tfidf or new; `title` is what people call it.
    `request_money` is the price of one request, 0 where it is not known. Not every system has every
    metric.
    """

    name: str
    title: str
    metrics: Mapping[str, ConfidenceInterval]
    request_money: float = 0.0


@dataclass(frozen=True, slots=True)
class TestSet:
    """More rows than the test split, or some of it, with the same figures. `name` is that of
    requirements: ``accuracy on far >= 0.8``.
    """

    name: str
    title: str
    rows: int
    systems: tuple[SystemScores, ...]
    differences: Mapping[str, Mapping[str, ConfidenceInterval]]


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Of the new adapter, for one label; `rows` is how many want it."""

    label: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Labels:
    """`confusion` counts rows by wanted label, then by said label; the last column is for answers
    that are no label.
    """

    scores: tuple[LabelScores, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row, and each system's answer to it, by the system's name."""

    prompt: str
    wanted: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SystemRatings:
    """One system's mean score by criterion, on the criterion's scale."""

    name: str
    scores: Mapping[str, ConfidenceInterval]


@dataclass(frozen=True, slots=True)
class Comment:
    """What a rater wrote about an answer to one of the samples, which these systems gave."""

    rater: str
    sample: int
    systems: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """The median of what people say of an answer to one of the samples, by one criterion."""

    sample: int
    systems: tuple[str, ...]
    criterion: str
    median: float


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What a judge says of a system's answer to one row, by criterion. Rows are numbered as samples
    are.
    """

    row: int
    system: str
    scores: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """A judge's choices between the new system's answers and another's. Of `rows`, `wins` and
    `losses` are those of the new one in both orders, `equal` answers were not asked about, and
    `flipped` ones went to the same place in both orders. Of `decided` calls `first` went to the
    first place.
    """

    system: str
    wins: int
    losses: int
    equal: int
    flipped: int
    rows: int
    decided: int
    first: int


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What a judge was asked. Of the `wanted` rows its budget let it be `asked` about some, and of
    `rows` every verdict could be read; `calls` were new. `metrics` are the names of its figures.
    With a `problem`, which is a sentence, it has none.
    """

    name: str
    model: str
    metrics: tuple[str, ...]
    wanted: int
    asked: int = 0
    rows: int = 0
    calls: int = 0
    answers: tuple[JudgedAnswer, ...] = ()
    pairs: tuple[JudgedPairs, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Ratings:
    """`agreement` by criterion, empty for one rater. `differences` are the new system's to each of
    the others, by system and criterion, paired by question and rater.
    """

    raters: tuple[str, ...]
    items: int
    systems: tuple[SystemRatings, ...]
    agreement: Mapping[str, Agreement]
    differences: Mapping[str, Mapping[str, ConfidenceInterval]]
    comments: tuple[Comment, ...] = ()
    medians: tuple[RatedAnswer, ...] = ()

    def of(self, system: str) -> Mapping[str, ConfidenceInterval]:
        return next((each.scores for each in self.systems if each.name == system), {})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`systems` begin with the base and end with the new one. `differences` are the new one's to
    each of the others, by system and metric, paired by row. `counterfactuals` are the new one's.
    `own` are metrics of one's own, and those of judges.
    """

    about: About
    systems: tuple[SystemScores, ...]
    differences: Mapping[str, Mapping[str, ConfidenceInterval]]
    labels: Labels | None
    counterfactuals: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    requirements: RequirementResults = UNCHECKED
    ratings: Ratings | None = None
    criteria: tuple[Criterion, ...] = USUAL
    sets: tuple[TestSet, ...] = ()
    own: Mapping[str, Metric] = field(default_factory=dict)
    # The first rows and their answers, for judges; empty where there are none.
    answers: tuple[Sample, ...] = ()
    judges: tuple[JudgeReport, ...] = ()

    @property
    def new(self) -> SystemScores:
        return self.systems[-1]

    def metric(self, name: str) -> Metric:
        """How the metric of this name is called and shown."""
        return METRICS.get(name) or self.more[name]

    @property
    def more(self) -> dict[str, Metric]:
        """Metrics beside `METRICS`: one's own, and what people rate."""
        return {**self.own, **rated(self.criteria)}

    def held_against(self, requirements: Sequence[Requirement]) -> Evaluation:
        """The same with these requirements held against all that was measured, what people say
        included.
        """
        ratings = self.ratings
        said = ratings.of(self.new.name) if ratings else {}
        paired = ratings.differences if ratings else {}
        return replace(
            self,
            requirements=check_requirements(
                requirements,
                {**self.new.metrics, **_as_metrics(said)},
                {
                    name: {**found, **_as_metrics(paired.get(name, {}))}
                    for name, found in self.differences.items()
                },
                self.more,
                {each.name: (each.systems[-1].metrics, each.differences) for each in self.sets},
            ),
        )

    @property
    def measured(self) -> dict[str, Mapping[str, ConfidenceInterval]]:
        """The new system's metrics by test set; "" is the test split."""
        return {"": self.new.metrics} | {each.name: each.systems[-1].metrics for each in self.sets}

    @property
    def caution(self) -> str:
        """What so few rows cannot tell, as a sentence; empty where there are enough."""
        rows, confidence = self.about.rows, self.about.confidence
        if rows >= _ENOUGH_ROWS:
            return ""
        found = share_interval(rows // 2, rows, confidence)
        return (
            f"These are {rows} rows only: a share of one half is known to about "
            f"{100 * (found.high - found.low) / 2:.0f} points more or less, and a change in fewer "
            f"than {100 * unseen_share(rows, confidence):.0f} of 100 rows may not show at all. "
            "More test rows would tell."
        )

    def figures(self) -> dict[str, float]:
        """The new system's metrics without intervals, and as `<metric>_over_base` their differences
        to the base.
        """
        differences = {
            f"{name}_over_base": interval.estimate
            for name, interval in self.differences.get("base", {}).items()
        }
        return {name: each.estimate for name, each in self.new.metrics.items()} | differences

    def write(self, folder: Path) -> Path:
        """Writes evaluation.json. Raises RunFolderError."""
        path = folder / FILE
        write_whole(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        return path

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Raises EvaluationError where there is none, or none that can be read."""
        path = folder / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise EvaluationError(
                f"{folder} holds no evaluation; run `loragate evaluate` first"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise EvaluationError(f"{path} cannot be read ({error}); evaluate again") from None


def _as_metrics(found: Mapping[str, ConfidenceInterval]) -> dict[str, ConfidenceInterval]:
    return {RATED + name: each for name, each in found.items()}
