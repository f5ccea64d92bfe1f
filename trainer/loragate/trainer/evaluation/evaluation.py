"""The result of an evaluation, as one value that JSON keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.counterfactuals import Outcome
from loragate.trainer.evaluation.requirements import RequirementResults
from loragate.trainer.evaluation.statistics import ConfidenceInterval
from loragate.trainer.run.folder import write_whole

FILE: Final = "evaluation.json"


@dataclass(frozen=True, slots=True)
class About:
    """What was evaluated on what, and how; enough to do it again."""

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


@dataclass(frozen=True, slots=True)
class SystemScores:
    """`name` is base, champion or new; `title` is what people call it."""

    name: str
    title: str
    metrics: Mapping[str, ConfidenceInterval]


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
    """One row with what each system says to it."""

    prompt: str
    wanted: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SystemRatings:
    """`scores` by criterion: the mean from 1 (bad) to 5 (good)."""

    name: str
    scores: Mapping[str, ConfidenceInterval]


@dataclass(frozen=True, slots=True)
class Ratings:
    """`agreement` by criterion: Krippendorff's alpha; empty for one rater."""

    raters: tuple[str, ...]
    items: int
    systems: tuple[SystemRatings, ...]
    agreement: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`differences` are the new adapter's to each baseline, by name and metric, paired by row."""

    about: About
    systems: tuple[SystemScores, ...]
    differences: Mapping[str, Mapping[str, ConfidenceInterval]]
    labels: Labels | None
    counterfactuals: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    requirements: RequirementResults
    ratings: Ratings | None = None

    @property
    def new(self) -> SystemScores:
        return self.systems[-1]

    def figures(self) -> dict[str, float]:
        """What a manifest says of the adapter: estimates alone, and differences to the base."""
        differences = {
            f"{name}_over_base": interval.estimate
            for name, interval in self.differences.get("base", {}).items()
        }
        return {name: each.estimate for name, each in self.new.metrics.items()} | differences

    def write(self, folder: Path) -> Path:
        """Raises RunFolderError."""
        path = folder / FILE
        write_whole(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        return path

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Raises EvaluationError."""
        path = folder / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            raise EvaluationError(
                f"{folder} holds no evaluation; run `loragate evaluate` first"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise EvaluationError(f"{path} cannot be read ({error}); evaluate again") from None
