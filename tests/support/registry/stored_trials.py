"""What a trial's server had kept when it ended, in a real database, counted anew by the next."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import insert
from sqlalchemy.orm import Session

from loragate.adapters.registry.database import Database
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.tables import (
    Adapters,
    Arms,
    Exposures,
    Feedback,
    Outcomes,
    Tenants,
    Trials,
)
from loragate.adapters.registry.trial_records import ExposureRow, FeedbackRow, OutcomeRow, Trial
from loragate.adapters.store import ArtifactStore
from loragate.server.experiments.running import RunningTrial

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def add_trial(session: Session, trial: Trial) -> None:
    """With its arms, whose versions do not matter here."""
    session.add(Tenants(id=trial.adapter.tenant, created_at=_NOW))
    session.flush()
    session.add(
        Adapters(id=1, tenant_id=trial.adapter.tenant, name=trial.adapter.name, next_number=1)
    )
    session.flush()
    session.add(
        Trials(
            id=trial.id,
            kind=trial.kind,
            adapter_id=1,
            salt=trial.salt,
            plan=trial.plan,
            state=trial.status.state,
            step=trial.status.step,
            watched_seconds=0.0,
            reason="",
            created_at=_NOW,
            updated_at=_NOW,
        )
    )
    session.flush()
    session.add_all(
        Arms(
            id=arm.id, trial_id=trial.id, position=i, name=arm.name, mode=arm.mode, share=arm.share
        )
        for i, arm in enumerate(trial.arms)
    )


def keep(
    url: str,
    trial: Trial,
    exposures: Sequence[ExposureRow],
    outcomes: Sequence[OutcomeRow],
    feedback: Iterable[FeedbackRow],
) -> None:
    """Into an empty database."""
    database = Database(url)
    with database.writing() as session:
        add_trial(session, trial)
        session.flush()
        for table, rows in ((Exposures, exposures), (Outcomes, outcomes), (Feedback, feedback)):
            if given := [asdict(row) for row in rows]:
                session.execute(insert(table), given)
    database.close()


def recounted(url: str, running: RunningTrial, store: ArtifactStore) -> RunningTrial:
    """A new one that counts what was kept of the same step."""
    trial = running.trial
    with Registry(url, store) as registry:
        again = RunningTrial(trial, running.plan, running.most_units)
        step = trial.status.step
        with registry.observations.step_figures(trial.id, step, again.counting_rule) as figures:
            again.recount(figures)
            again.remember(figures)
    return again
