"""Metrics of one's own: a Python function, a regular expression, or a JSON schema."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loragate.trainer.data.example import Example
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.metrics import METRICS, RATED, Metric
from loragate.trainer.evaluation.scores import Answer
from loragate.trainer.evaluation.statistics import Statistic, mean, share
from loragate.trainer.evaluation.table_names import check_name
from loragate.trainer.settings import OwnMetricSettings

Judge = Callable[[Example, str], float | bool]
"""From a row and an answer to it to a number, or to whether it is right."""

TABLE: Final = "evaluation.metrics"


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """`judge` is called once for each answer."""

    name: str
    metric: Metric
    judge: Judge

    def statistic(self, rows: Sequence[Example], answers: Sequence[Answer]) -> Statistic:
        """Over all rows: a share, where every value is true or false. Raises EvaluationError."""
        values = [self._value(row, answer.text) for row, answer in zip(rows, answers, strict=True)]
        if self.metric.is_share:
            return share([bool(value) for value in values])
        return mean([float(value) for value in values])

    def _value(self, row: Example, answer: str) -> float | bool:
        place = f"[{TABLE}.{self.name}], asked {row.prompt[:80]!r}"
        try:
            value = self.judge(row, answer)
        except Exception as error:  # the user's own code may raise anything
            raise EvaluationError(f"{place}: {type(error).__name__}: {error}") from error
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            raise EvaluationError(f"{place}: {value!r} is no number; return a number or a bool")
        return value


def own_metrics(settings: Mapping[str, OwnMetricSettings], root: Path) -> tuple[OwnMetric, ...]:
    """The metrics of [evaluation.metrics]. Functions are also looked for in the folder `root`.
    Raises EvaluationError, naming the table.
    """
    return tuple(_own(name, each, root) for name, each in settings.items())


def _own(name: str, settings: OwnMetricSettings, root: Path) -> OwnMetric:
    table = f"[{TABLE}.{name}]"
    check_name(TABLE, name, METRICS)
    if name.startswith(RATED):
        raise EvaluationError(f"{table}: names with {RATED} are those of ratings; choose another")
    given = [each for each in (settings.function, settings.pattern, settings.schema) if each]
    if len(given) != 1:
        raise EvaluationError(f"{table}: give one of 'function', 'pattern' and 'schema'")
    if settings.function:
        judge, explained = _function(settings.function, root, table), settings.function
    elif settings.pattern:
        judge, explained = _pattern(settings.pattern, table), f"answers with {settings.pattern}"
    else:
        judge, explained = _schema(settings.schema, table), f"answers as {settings.schema} says"
    is_share = settings.share or not settings.function
    title = name.replace("_", " ").capitalize()
    return OwnMetric(name, Metric(title, settings.better, explained, is_share, digits=3), judge)


def _function(entry: str, root: Path, table: str) -> Judge:
    module, _, name = entry.partition(":")
    if not module or not name:
        raise EvaluationError(f"{table} function: {entry!r} is not written as 'module:function'")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise EvaluationError(
            f"{table} function: {entry!r} cannot be imported ({error}); it is looked for beside "
            "the run's folder and among installed packages"
        ) from error

    def judge(row: Example, answer: str) -> float | bool:
        return found(prompt=row.turns()[:-1], wanted=row.answer, answer=answer)

    return judge


def _pattern(pattern: str, table: str) -> Judge:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise EvaluationError(f"{table} pattern: {pattern!r} is no pattern: {error}") from None
    return lambda _row, answer: compiled.search(answer) is not None


def _schema(path: str, table: str) -> Judge:
    try:
        from jsonschema import Draft202012Validator, SchemaError
    except ImportError:
        raise EvaluationError(f"{table} schema needs a package: pip install jsonschema") from None
    try:
        schema = json.loads(Path(path).read_text("utf-8"))
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        raise EvaluationError(f"{table} schema: {path} cannot be used: {error}") from error
    validator = Draft202012Validator(schema)

    def judge(_row: Example, answer: str) -> bool:
        try:
            return validator.is_valid(json.loads(answer))
        except ValueError:
            return False

    return judge
