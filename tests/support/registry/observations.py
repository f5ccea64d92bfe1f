"""What the registry has kept of a trial's step, row by row; only tests want all of it at once."""

from dataclasses import dataclass, fields
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.tables import Arms, Base, Exposures, Feedback, Outcomes
from loragate.adapters.registry.trial_records import ExposureRow, FeedbackRow, OutcomeRow

Row = TypeVar("Row", ExposureRow, OutcomeRow, FeedbackRow)


@dataclass(frozen=True, slots=True)
class Observations:
    """Each in the order of time."""

    exposures: tuple[ExposureRow, ...]
    outcomes: tuple[OutcomeRow, ...]
    feedback: tuple[FeedbackRow, ...]


def observed(registry: Registry, trial_id: int, step: int) -> Observations:
    with registry._database.reading() as session:
        return Observations(
            _rows(session, Exposures, ExposureRow, trial_id, step),
            _rows(session, Outcomes, OutcomeRow, trial_id, step),
            _rows(session, Feedback, FeedbackRow, trial_id, step),
        )


def _rows(
    session: Session,
    table: type[Exposures] | type[Outcomes] | type[Feedback],
    kind: type[Row],
    trial_id: int,
    step: int,
) -> tuple[Row, ...]:
    query = select(*(getattr(table, field.name) for field in fields(kind)))
    if table is not Exposures:
        query = query.join(Exposures, Exposures.id == _exposure_id(table))
    query = query.join(Arms, Arms.id == Exposures.arm_id)
    query = query.where(Arms.trial_id == trial_id, Exposures.step == step).order_by(table.at)
    return tuple(kind(*row) for row in session.execute(query))


def _exposure_id(table: type[Base]):
    return Outcomes.exposure_id if table is Outcomes else Feedback.exposure_id
