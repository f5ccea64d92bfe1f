"""What a step of a trial has shown, to count its figures anew without reading each request.

The database adds up and sorts out; what is read is one row a unit, and the few values that count.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    CTE,
    ColumnElement,
    Executable,
    SQLColumnExpression,
    and_,
    case,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Session

from loragate.adapters.registry.tables import Exposures, Feedback, Outcomes, UtcDateTime

# SQLite's own times are exact to milliseconds. Some more rows are read than count; whoever counts
# them looks at each one's time.
_SLACK_SECONDS: Final = 1.0
_ROWS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class CountingRule:
    """Of each unit the first ``values`` of each metric count, and those that came within
    ``window_seconds`` of its first request; of all arms' units the first ``most_units``.
    """

    values: int
    window_seconds: float
    most_units: int


@dataclass(frozen=True, slots=True)
class FirstExposure:
    """The first request of a unit in an arm."""

    arm_id: int
    unit: str
    unit_kind: str
    at: datetime


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How a request of a unit ended, which its own arm answered."""

    arm_id: int
    unit: str
    at: datetime
    failed: bool
    duration_seconds: float
    completion_tokens: int
    ttft_seconds: float | None
    itl_seconds: float | None


@dataclass(frozen=True, slots=True)
class UnitFeedback:
    """What somebody thought of an answer that a unit was given by its own arm."""

    arm_id: int
    unit: str
    at: datetime
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class RecentExposure:
    """A request of which feedback may still come that counts."""

    id: str
    arm_id: int
    unit: str
    at: datetime


Event: TypeAlias = FirstExposure | UnitOutcome | UnitFeedback


class StepFigures:
    """Reads within one transaction, and so of one moment; each method may take long where there are
    millions of requests, and holds about a thousand rows at once.
    """

    def __init__(
        self, session: Session, arms: Sequence[int], step: int, rule: CountingRule
    ) -> None:
        """``arms`` are the ids of all of the trial's."""
        self._session = session
        self._rule = rule
        self._arms = list(arms)
        self._step = step
        self._mine = and_(Exposures.arm_id.in_(self._arms), Exposures.step == step)

    def requests(self) -> Mapping[int, int]:
        """How many were admitted, by the arm's id."""
        query = select(Exposures.arm_id, func.count()).where(self._mine)
        rows = self._session.execute(query.group_by(Exposures.arm_id))
        return {arm_id: int(count) for arm_id, count in rows}

    def fallbacks(self) -> Mapping[int, int]:
        """How many of these another arm answered, by the arm's id."""
        fallbacks = select(Outcomes.exposure_id).where(Outcomes.is_fallback)
        query = (
            select(Exposures.arm_id, func.count())
            .where(
                Exposures.id.in_(fallbacks),
                # As a sum, so that no database goes through all exposures by the arms' index.
                (Exposures.arm_id + 0).in_(self._arms),
                Exposures.step == self._step,
            )
            .group_by(Exposures.arm_id)
        )
        return {arm_id: int(count) for arm_id, count in self._session.execute(query)}

    def events(self) -> Iterator[Event]:
        """All that counts by the rule, and little else, in the order of time; of one moment, first
        requests before outcomes, and these before feedback.
        """
        firsts = self._firsts()
        return heapq.merge(
            (
                FirstExposure(*row)
                for row in self._stream(
                    select(
                        firsts.c.arm_id, firsts.c.unit, firsts.c.unit_kind, firsts.c.at
                    ).order_by(firsts.c.at, firsts.c.arm_id, firsts.c.unit)
                )
            ),
            (UnitOutcome(*row) for row in self._stream(self._outcomes(firsts))),
            (UnitFeedback(*row) for row in self._stream(self._feedback(firsts))),
            key=lambda event: event.at,  # of equal ones, merge takes the earlier iterable's first
        )

    def recent(self) -> Iterator[RecentExposure]:
        """Those of the last ``window_seconds`` before the latest, oldest first, but for what a
        fallback answered.
        """
        latest = self._session.scalar(select(func.max(Exposures.at)).where(self._mine))
        if latest is None:
            return
        since = latest - timedelta(seconds=self._rule.window_seconds + _SLACK_SECONDS)
        query = (
            select(Exposures.id, Exposures.arm_id, Exposures.unit, Exposures.at)
            .outerjoin(Outcomes, Outcomes.exposure_id == Exposures.id)
            .where(self._mine, Exposures.at >= since, _is_answered_by_its_arm())
            .order_by(Exposures.at, Exposures.id)
        )
        for row in self._stream(query):
            yield RecentExposure(*row)

    def _stream(self, query: Executable) -> Iterator[tuple[Any, ...]]:
        return iter(self._session.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE}))

    def _firsts(self) -> CTE:
        """Each unit's first request in each arm, of the first units that came."""
        begun = func.min(Exposures.at).label("at")
        unit = Exposures.arm_id, Exposures.unit
        return (
            select(*unit, func.min(Exposures.unit_kind).label("unit_kind"), begun)
            .where(self._mine)
            .group_by(*unit)
            .order_by(begun, *unit)
            .limit(self._rule.most_units)
            .cte("firsts")
        )

    def _outcomes(self, firsts: CTE) -> Executable:
        answered = ~Outcomes.failed
        metrics = {
            "all": true(),
            "answered": answered,
            "ttft": and_(answered, Outcomes.ttft_seconds.is_not(None)),
            "itl": and_(answered, Outcomes.itl_seconds.is_not(None)),
            "speed": and_(answered, Outcomes.completion_tokens != 0, Outcomes.duration_seconds > 0),
        }
        order = (Outcomes.at, Outcomes.exposure_id)
        found = (
            select(
                Exposures.arm_id,
                Exposures.unit,
                Outcomes.at,
                Outcomes.exposure_id,
                Outcomes.failed,
                Outcomes.duration_seconds,
                Outcomes.completion_tokens,
                Outcomes.ttft_seconds,
                Outcomes.itl_seconds,
                *(
                    _is_among_the_first(self._rule.values, has_it, order).label(f"is_of_{name}")
                    for name, has_it in metrics.items()
                ),
            )
            .select_from(firsts)
            .join(Exposures, and_(self._mine, _is_of_unit(firsts)))
            .join(Outcomes, Outcomes.exposure_id == Exposures.id)
            .where(
                self._mine,
                ~Outcomes.is_fallback,
                Exposures.at < self._window_end(firsts),
                Outcomes.at < self._window_end(firsts),
                Outcomes.at >= Exposures.at,
            )
            .subquery()
        )
        needed = or_(*(found.c[f"is_of_{name}"] == 1 for name in metrics))
        columns = (
            "arm_id",
            "unit",
            "at",
            "failed",
            "duration_seconds",
            "completion_tokens",
            "ttft_seconds",
            "itl_seconds",
        )
        return (
            select(*(found.c[name] for name in columns))
            .where(needed)
            .order_by(found.c.at, found.c.exposure_id)
        )

    def _feedback(self, firsts: CTE) -> Executable:
        place = func.row_number().over(
            partition_by=(Exposures.arm_id, Exposures.unit, Feedback.metric),
            order_by=(Feedback.at, Feedback.exposure_id, Feedback.request_id),
        )
        found = (
            select(
                Exposures.arm_id,
                Exposures.unit,
                Feedback.at,
                Feedback.metric,
                Feedback.value,
                Feedback.exposure_id,
                place.label("place"),
            )
            .select_from(firsts)
            .join(Exposures, and_(self._mine, _is_of_unit(firsts)))
            .join(Feedback, Feedback.exposure_id == Exposures.id)
            .outerjoin(Outcomes, Outcomes.exposure_id == Exposures.id)
            .where(
                self._mine,
                Feedback.value.is_not(None),
                Exposures.at < self._window_end(firsts),
                Feedback.at < self._window_end(firsts),
                Feedback.at >= Exposures.at,
                # What was said before it was known that a fallback had to answer has counted.
                or_(_is_answered_by_its_arm(), Outcomes.at > Feedback.at),
            )
            .subquery()
        )
        columns = "arm_id", "unit", "at", "metric", "value"
        return (
            select(*(found.c[name] for name in columns))
            .where(found.c.place <= self._rule.values)
            .order_by(found.c.at, found.c.exposure_id, found.c.metric)
        )

    def _window_end(self, firsts: CTE) -> SQLColumnExpression[datetime]:
        """Or somewhat later."""
        seconds = self._rule.window_seconds + _SLACK_SECONDS
        if self._session.get_bind().dialect.name == "sqlite":
            # As text, to which the text that it has for a time compares as times do.
            later = f"+{seconds:.3f} seconds"
            return func.strftime("%Y-%m-%d %H:%M:%f", firsts.c.at, later, type_=UtcDateTime)
        return firsts.c.at + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _is_of_unit(firsts: CTE) -> ColumnElement[bool]:
    return and_(firsts.c.arm_id == Exposures.arm_id, firsts.c.unit == Exposures.unit)


def _is_answered_by_its_arm() -> ColumnElement[bool]:
    """Or its outcome is not known."""
    return or_(Outcomes.is_fallback.is_(None), ~Outcomes.is_fallback)


def _is_among_the_first(
    values: int,
    has_it: ColumnElement[bool],
    order: tuple[SQLColumnExpression[object], ...],
) -> ColumnElement[int]:
    """1 where the row has a value, and not so many of its unit before it have one."""
    one = case((has_it, 1), else_=0)
    count = func.sum(one).over(
        partition_by=(Exposures.arm_id, Exposures.unit), order_by=order, rows=(None, 0)
    )
    return case((and_(has_it, count <= values), 1), else_=0)
