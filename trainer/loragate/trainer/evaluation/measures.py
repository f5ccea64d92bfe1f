"""All that a run file says about how answers are measured, checked before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loragate.trainer.evaluation.criteria import Criterion, criteria_of
from loragate.trainer.evaluation.judges import Judge, judges_of
from loragate.trainer.evaluation.metrics import Metric, rated
from loragate.trainer.evaluation.own_metrics import OwnMetric, own_metrics
from loragate.trainer.evaluation.requirements import Requirement
from loragate.trainer.settings import EvaluationSettings


@dataclass(frozen=True, slots=True)
class Measures:
    """What people rate by, metrics of one's own, judges, and what is required of all metrics."""

    criteria: tuple[Criterion, ...]
    own: tuple[OwnMetric, ...]
    judges: tuple[Judge, ...]
    requirements: tuple[Requirement, ...]

    @classmethod
    def of(
        cls,
        settings: EvaluationSettings,
        root: Path,
        measured: Mapping[str, Metric] | None = None,
    ) -> Measures:
        """Of [evaluation], whose paths are absolute. Functions are looked for in the folder `root`
        too. `measured` are metrics that were measured already, by what the settings were then.

        Raises EvaluationError, naming the table, and InvalidRequirement.
        """
        criteria = criteria_of(settings.rubric)
        own = own_metrics(settings.metrics, root)
        own_by_name = {each.name: each.metric for each in own}
        judges = judges_of(settings.judges, criteria, own_by_name)
        more = {**(measured or {}), **own_by_name, **rated(criteria)}
        for judge in judges:
            more |= judge.metrics
        required = tuple(Requirement.parse(sentence, more) for sentence in settings.require)
        return cls(criteria, own, judges, required)
