"""What must hold before a run is published, in sentences such as ``accuracy - base >= 0.30``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, cast

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import CHAMPION
from loragate.trainer.evaluation.metrics import METRICS, RATED, Metric
from loragate.trainer.evaluation.statistics import ConfidenceInterval

Figures = tuple[Mapping[str, ConfidenceInterval], Mapping[str, Mapping[str, ConfidenceInterval]]]
"""Metrics of the new adapter, and their differences by baseline and metric."""
Operator = Literal[">=", "<="]
FIRST: Final = "first"
BASELINES: Final = ("base", FIRST, CHAMPION, "examples", "retrieval", "tfidf")

_SENTENCE: Final = re.compile(
    r"\s*(?P<metric>\w+)(?:\s+on\s+(?P<rows>[\w.]+))?\s*(?:-\s*(?P<baseline>[A-Za-z]\w*)\s*)?"
    r"(?P<operator>>=|<=)\s*(?P<bound>[-+]?\d+(?:\.\d+)?)\s*",
    re.ASCII,
)


class InvalidRequirement(LoragateError, ValueError):
    """A sentence in `require` that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound on a metric of the new adapter, or on its difference to a baseline's. `rows` names a
    test set; empty is the test split.
    """

    metric: str
    baseline: str
    operator: Operator
    bound: float
    rows: str = ""

    @classmethod
    def parse(cls, sentence: str, more: Mapping[str, Metric] = MappingProxyType({})) -> Requirement:
        """`more` are metrics beside `METRICS`. Raises InvalidRequirement."""
        match = _SENTENCE.fullmatch(sentence)
        if match is None:
            raise InvalidRequirement(
                f"{sentence!r} in [evaluation] require cannot be understood; write it as "
                "'METRIC >= NUMBER' or 'METRIC - base <= NUMBER', with one of "
                f"{', '.join(BASELINES)}"
            )
        if match["metric"] not in METRICS and match["metric"] not in more:
            raise InvalidRequirement(
                f"{sentence!r} in [evaluation] require names no metric; there are "
                f"{', '.join([*METRICS, *more])}"
            )
        if match["baseline"] and match["baseline"] not in BASELINES:
            raise InvalidRequirement(
                f"{sentence!r} in [evaluation] require compares with {match['baseline']!r}, which "
                f"is none of {', '.join(BASELINES)}"
            )
        operator = cast(Operator, match["operator"])
        bound = float(match["bound"])
        return cls(match["metric"], match["baseline"] or "", operator, bound, match["rows"] or "")

    def __str__(self) -> str:
        difference = f" - {self.baseline}" if self.baseline else ""
        rows = f" on {self.rows}" if self.rows else ""
        return f"{self.metric}{rows}{difference} {self.operator} {self.bound:g}"

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.operator == ">=" else value <= self.bound


def subject_of(sentence: str) -> tuple[str, str]:
    """The metric that a requirement names, and its rows, whether there are such or not."""
    match = _SENTENCE.fullmatch(sentence)
    return (match["metric"], match["rows"] or "") if match else ("", "")


@dataclass(frozen=True, slots=True)
class RequirementResult:
    """Whether one requirement holds, and the sentence that says so to people."""

    requirement: str
    holds: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class RequirementResults:
    """`holds` where all requirements do; only then is a run published. `sentence` says it to
    people.
    """

    holds: bool
    sentence: str
    results: tuple[RequirementResult, ...]


UNCHECKED: Final = RequirementResults(True, "", ())


def check_requirements(
    requirements: Sequence[Requirement],
    measured: Mapping[str, ConfidenceInterval],
    differences: Mapping[str, Mapping[str, ConfidenceInterval]],
    more: Mapping[str, Metric] = MappingProxyType({}),
    sets: Mapping[str, Figures] = MappingProxyType({}),
) -> RequirementResults:
    """`measured` is by metric, `differences` by baseline and metric; `more` are metrics beside
    `METRICS`, and `sets` the same figures on other rows, by the test set's name.

    A comparison with the champion or the first version holds where there is none; a metric that was
    not measured does not hold.
    """
    metrics = {**METRICS, **more}
    figures: dict[str, Figures] = {"": (measured, differences), **sets}
    results = tuple(
        _result(each, metrics[each.metric], *figures[each.rows])
        if each.rows in figures
        else _not_there(each, figures)
        for each in requirements
    )
    failed = [result for result in results if not result.holds]
    if not results:
        sentence = "Nothing was required, so the adapter may be published."
    elif not failed:
        sentence = f"The adapter may be published: all {len(results)} requirements hold."
    else:
        what = ", ".join(result.requirement for result in failed)
        do = "does" if len(failed) == 1 else "do"
        sentence = (
            f"The adapter is not to be published: {len(failed)} of {len(results)} requirements "
            f"{do} not hold ({what})."
        )
    return RequirementResults(not failed, sentence, results)


def _not_there(requirement: Requirement, figures: Mapping[str, Figures]) -> RequirementResult:
    names = ", ".join(name for name in figures if name) or "none"
    return RequirementResult(
        str(requirement),
        False,
        f"There are no rows called {requirement.rows!r} (there are: {names}); name a folder or a "
        "file of them in [evaluation] tests. 'far' are the test rows far from every train row, "
        "where there are two of them at least.",
    )


def _result(
    requirement: Requirement,
    metric: Metric,
    measured: Mapping[str, ConfidenceInterval],
    differences: Mapping[str, Mapping[str, ConfidenceInterval]],
) -> RequirementResult:
    against = f" against the {requirement.baseline}" if requirement.baseline else ""
    subject = metric.title + (f" on {requirement.rows}" if requirement.rows else "") + against
    baseline = requirement.baseline
    if baseline == FIRST and FIRST not in differences:
        baseline = CHAMPION  # which is the first version itself
    if baseline == CHAMPION and CHAMPION not in differences:
        return RequirementResult(
            str(requirement), True, f"{subject}: there is no version yet, so nothing to beat."
        )
    if baseline and baseline not in differences:
        return RequirementResult(
            str(requirement),
            False,
            f"{subject} was not measured; name {baseline!r} in [evaluation] contenders (tfidf is "
            "for rows with labels only).",
        )
    found = (
        differences[baseline].get(requirement.metric)
        if baseline
        else measured.get(requirement.metric)
    )
    if found is None and requirement.metric.startswith(RATED):
        return RequirementResult(
            str(requirement),
            False,
            f"{subject}: nobody has rated the answers yet; write a sheet with `loragate evaluate "
            "RUN --rubric`, and read it back with --ratings.",
        )
    if found is None:
        return RequirementResult(
            str(requirement),
            False,
            f"{subject} was not measured on these rows; remove the requirement or give what it "
            "needs (labels for accuracy and f1, rows for counterfactuals, a judge that answers; a "
            "preference is always against a baseline).",
        )
    return _compared(requirement, metric, subject, found)


def _compared(
    requirement: Requirement, metric: Metric, subject: str, found: ConfidenceInterval
) -> RequirementResult:
    show = metric.show_difference if requirement.baseline else metric.show
    holds = requirement.holds(found.estimate)
    wanted = "at least" if requirement.operator == ">=" else "at most"
    is_sure = requirement.holds(found.low) == requirement.holds(found.high)
    doubt = "" if is_sure else " The interval reaches across: more test rows would tell."
    return RequirementResult(
        str(requirement),
        holds,
        f"{subject} is {show(found.estimate)} ({show(found.low)} to {show(found.high)}) and must "
        f"be {wanted} {show(requirement.bound)}.{doubt}",
    )
