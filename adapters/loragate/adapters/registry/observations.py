"""What rollouts and experiments saw: exposures, outcomes and feedback. Writing them does not change
the registry's revision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Final, TypeVar

from sqlalchemy import Executable, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from loragate.adapters.errors import FeedbackGiven, RequestNotFound
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.insertion import insert_into, insert_new
from loragate.adapters.registry.rows import live_tenant
from loragate.adapters.registry.step_figures import CountingRule, StepFigures
from loragate.adapters.registry.tables import (
    Arms,
    Base,
    Exposures,
    Feedback,
    Outcomes,
    ShadowPairs,
    UsageRecords,
    storable,
)
from loragate.adapters.registry.trial_records import (
    ExposureRow,
    FeedbackRow,
    OutcomeRow,
    ShadowRow,
)

Row = TypeVar("Row", ExposureRow, OutcomeRow, FeedbackRow, ShadowRow)
_LONGEST_COUNT_SECONDS: Final = 600.0


class ObservationLedger:
    """The part of `Registry` that keeps what arms were asked and how they did."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        exposures: Sequence[ExposureRow],
        outcomes: Sequence[OutcomeRow],
        shadows: Sequence[ShadowRow] = (),
    ) -> None:
        """Write those that are not written yet or, when anything is raised, none. A row that can
        never be stored is logged and left out.
        """
        with self._database.writing() as session:
            insert_new(session, Exposures, exposures)
            insert_new(session, Outcomes, outcomes)
            insert_new(session, ShadowPairs, shadows)

    def add_feedback(self, row: FeedbackRow) -> FeedbackRow | None:
        """Keep what was said of one of the tenant's requests, and return it with its exposure; None
        where it had been said before.

        Raises TenantNotFound, RequestNotFound, for another tenant's request too, and FeedbackGiven
        where the metric has another value already.
        """
        with self._database.writing() as session:
            live_tenant(session, row.tenant)
            exposure_id = _exposure_of(session, row.tenant, row.request_id)
            row = replace(row, comment=storable(row.comment))
            kept = replace(row, exposure_id=exposure_id)
            # Somebody else may be saying the same right now: then theirs stands.
            added = session.execute(
                insert_into(session, Feedback)
                .values(asdict(kept))
                .on_conflict_do_nothing()
                .returning(Feedback.metric)
            ).one_or_none()
            if added is not None:
                return kept
            before = session.get_one(Feedback, (row.tenant, row.request_id, row.metric))
            if (before.value, before.comment) != (row.value, row.comment):
                raise FeedbackGiven(row.request_id, row.metric)
            return None

    def shadow_pairs(self, trial_id: int, limit: int = 1000) -> tuple[ShadowRow, ...]:
        """Of all steps, newest first."""
        query = (
            select(*_columns(ShadowPairs, ShadowRow))
            .join(Arms, Arms.id == ShadowPairs.arm_id)
            .where(Arms.trial_id == trial_id)
            .order_by(ShadowPairs.at.desc())
            .limit(limit)
        )
        with self._database.reading() as session:
            return _rows(session, query, ShadowRow)

    @contextmanager
    def step_figures(self, trial_id: int, step: int, rule: CountingRule) -> Iterator[StepFigures]:
        """What one step has shown, to count its figures anew: after a restart, or for a report.
        They are read within the block, which may take minutes where there are millions.
        """
        with self._database.reading(most_seconds=_LONGEST_COUNT_SECONDS) as session:
            if session.get_bind().dialect.name == "postgresql":
                # It takes a step's units for few, and would look through all for each request.
                session.execute(text("SET LOCAL enable_nestloop = off"))
            arms = session.scalars(select(Arms.id).where(Arms.trial_id == trial_id)).all()
            yield StepFigures(session, arms, step, rule)


def _exposure_of(session: Session, tenant: str, request_id: str) -> str | None:
    """The latest of the request, or None if no trial had taken it. Raises RequestNotFound."""
    exposure = session.scalars(
        select(Exposures.id)
        .where(Exposures.tenant == tenant, Exposures.request_id == request_id)
        .order_by(Exposures.at.desc())
        .limit(1)
    ).one_or_none()
    if exposure is None:
        used = select(UsageRecords.id).where(
            UsageRecords.tenant == tenant, UsageRecords.request_id == request_id
        )
        if session.scalars(used.limit(1)).one_or_none() is None:
            raise RequestNotFound(tenant, request_id)
    return exposure


def _columns(table: type[Base], kind: type[Row]) -> list[InstrumentedAttribute[object]]:
    return [getattr(table, field.name) for field in fields(kind)]


def _rows(session: Session, query: Executable, kind: type[Row]) -> tuple[Row, ...]:
    return tuple(kind(*row) for row in session.execute(query))
