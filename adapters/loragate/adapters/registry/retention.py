"""What the registry keeps no longer: deleted in small transactions, so that others write between.

Deleting changes nothing that is served: it does not change the revision, and is not audited.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar, cast

from sqlalchemy import ColumnElement, CursorResult, Select, and_, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from loragate.adapters.registry.aliases import ALIAS_ACTIONS
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.insertion import insert_into
from loragate.adapters.registry.tables import (
    Arms,
    Audit,
    Exposures,
    Feedback,
    Outcomes,
    ShadowPairs,
    Tenants,
    Trials,
    UsageDays,
    UsageRecords,
)

Id = TypeVar("Id", int, str)
Table: TypeAlias = Audit | Exposures | Feedback | Outcomes | ShadowPairs | UsageRecords

PAUSE_SECONDS: Final = 0.05
"""For whoever deletes, between two steps of `RetentionLedger.prune`."""
# In one transaction, which takes some tens of milliseconds: beside it nobody else writes.
_ROWS_AT_ONCE: Final = 1000
_LONGEST_COUNT_SECONDS: Final = 600.0
_TOKENS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days what only grows is kept; 0 is for ever.

    ``observations_days``: what a trial saw (exposures, outcomes, shadow answers, feedback), counted
    from the trial's end; what one under way saw is never deleted. ``usage_days``: usage records,
    whose sums by day stay, and feedback on requests that no trial had taken. ``audit_days``: the
    audit log, but for the history of aliases, from which a rollback finds its way.
    """

    observations_days: int = 90
    usage_days: int = 90
    audit_days: int = 400


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows of each kind."""

    exposures: int = 0
    outcomes: int = 0
    shadows: int = 0
    feedback: int = 0
    usage: int = 0
    audit: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(*(getattr(self, name) + getattr(other, name) for name in _KINDS))

    @property
    def rows(self) -> int:
        """Of all kinds together."""
        return sum(getattr(self, name) for name in _KINDS)


_KINDS: Final = tuple(field.name for field in fields(Pruned))


class RetentionLedger:
    """The part of `Registry` that deletes what is kept no longer. Any number of processes may do so
    at once, beside a server too: no row counts twice.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def prunable(self, retention: Retention, now: datetime) -> Pruned:
        """What `prune` would delete now. Counts millions of rows in seconds."""
        with self._database.reading(most_seconds=_LONGEST_COUNT_SECONDS) as session:
            found = Pruned()
            if (before := _before(now, retention.observations_days)) is not None:
                found += _count_observations(session, before)
            if (before := _before(now, retention.usage_days)) is not None:
                found += Pruned(
                    usage=sum(
                        _count(session, UsageRecords, _is_old_usage(tenant, before))
                        for tenant in session.scalars(_tenants_with_usage(before)).all()
                    ),
                    feedback=_count(session, Feedback, _is_unseen_feedback(before)),
                )
            if (before := _before(now, retention.audit_days)) is not None:
                found += Pruned(audit=_count(session, Audit, _is_old_audit(before)))
            return found

    def prune(self, retention: Retention, now: datetime) -> Iterator[Pruned]:
        """Deletes some rows with each step of the iteration, in a transaction of its own, and says
        how many. Whoever iterates lets others write between two steps, and may end at any.
        """
        if (before := _before(now, retention.observations_days)) is not None:
            yield from self._prune_observations(before)
        if (before := _before(now, retention.usage_days)) is not None:
            yield from self._prune_usage(before)
            yield from self._prune_unseen_feedback(before)
        if (before := _before(now, retention.audit_days)) is not None:
            yield from self._prune_audit(before)

    def _prune_observations(self, before: datetime) -> Iterator[Pruned]:
        with self._database.reading() as session:
            arms = session.scalars(_arms_ended(before)).all()
        for arm in arms:
            exposed = select(Exposures.id).where(Exposures.arm_id == arm)
            yield from self._piece_by_piece(exposed, _delete_exposures)
            shadows = select(ShadowPairs.exposure_id).where(ShadowPairs.arm_id == arm)
            yield from self._piece_by_piece(shadows, _delete_shadows)

    def _prune_usage(self, before: datetime) -> Iterator[Pruned]:
        with self._database.reading(most_seconds=_LONGEST_COUNT_SECONDS) as session:
            tenants = session.scalars(_tenants_with_usage(before)).all()
        for tenant in tenants:
            old = select(UsageRecords.id).where(_is_old_usage(tenant, before))
            yield from self._piece_by_piece(old.order_by(UsageRecords.at), _sum_up_usage)

    def _piece_by_piece(
        self, old: Select[Id], prune: Callable[[Session, Sequence[Id]], Pruned]
    ) -> Iterator[Pruned]:
        """``old`` must find its rows by an index: nobody else writes while it looks."""
        # What another process deletes just now is left to it.
        piece = old.limit(_ROWS_AT_ONCE).with_for_update(skip_locked=True)
        while True:
            with self._database.writing() as session:
                ids = session.scalars(piece).all()
                pruned = prune(session, ids) if ids else None
            if pruned is None:
                return
            yield pruned

    def _prune_unseen_feedback(self, before: datetime) -> Iterator[Pruned]:
        key = tuple_(Feedback.tenant, Feedback.request_id, Feedback.metric)
        old = select(Feedback.tenant, Feedback.request_id, Feedback.metric)
        old = old.where(_is_unseen_feedback(before)).limit(_ROWS_AT_ONCE)
        while True:
            # Read apart: to find them may take long, and nobody else is to wait for that.
            with self._database.reading(most_seconds=_LONGEST_COUNT_SECONDS) as session:
                found = [tuple(row) for row in session.execute(old)]
            if not found:
                return
            with self._database.writing() as session:
                deleted = _delete(session, Feedback, key.in_(found))
            yield Pruned(feedback=deleted)

    def _prune_audit(self, before: datetime) -> Iterator[Pruned]:
        seen = 0
        while True:
            old = select(Audit.id).where(_is_old_audit(before), Audit.id > seen)
            with self._database.reading(most_seconds=_LONGEST_COUNT_SECONDS) as session:
                ids = session.scalars(old.order_by(Audit.id).limit(_ROWS_AT_ONCE)).all()
            if not ids:
                return
            seen = ids[-1]
            with self._database.writing() as session:
                deleted = _delete(session, Audit, Audit.id.in_(ids))
            yield Pruned(audit=deleted)


def _before(now: datetime, days: int) -> datetime | None:
    """What is older is kept no longer; None where all is kept."""
    return now - timedelta(days=days) if days else None


def _arms_ended(before: datetime) -> Select[int]:
    """The arms of trials that ended before, of which something is kept."""
    exposed = select(Exposures.id).where(Exposures.arm_id == Arms.id).exists()
    shadowed = select(ShadowPairs.exposure_id).where(ShadowPairs.arm_id == Arms.id).exists()
    return (
        select(Arms.id)
        .join(Trials, Trials.id == Arms.trial_id)
        .where(Trials.ended_at < before, or_(exposed, shadowed))
        .order_by(Arms.id)
    )


def _tenants_with_usage(before: datetime) -> Select[str]:
    """Those with records that are older: by tenant, since that is how records are indexed."""
    old = select(UsageRecords.id).where(UsageRecords.tenant == Tenants.id, UsageRecords.at < before)
    return select(Tenants.id).where(old.exists()).order_by(Tenants.id)


def _is_old_usage(tenant: str, before: datetime) -> ColumnElement[bool]:
    return and_(UsageRecords.tenant == tenant, UsageRecords.at < before)


def _is_unseen_feedback(before: datetime) -> ColumnElement[bool]:
    """On requests that no trial had taken."""
    return and_(Feedback.exposure_id.is_(None), Feedback.at < before)


def _is_old_audit(before: datetime) -> ColumnElement[bool]:
    return and_(Audit.at < before, ~Audit.action.startswith(ALIAS_ACTIONS))


def _count(session: Session, table: type[Table], which: ColumnElement[bool]) -> int:
    return session.scalars(select(func.count()).select_from(table).where(which)).one()


def _count_observations(session: Session, before: datetime) -> Pruned:
    arms = session.scalars(_arms_ended(before)).all()
    found = Pruned()
    for arm in arms:
        exposed = Exposures.arm_id == arm
        ids = select(Exposures.id).where(exposed)
        found += Pruned(
            exposures=_count(session, Exposures, exposed),
            outcomes=_count(session, Outcomes, Outcomes.exposure_id.in_(ids)),
            feedback=_count(session, Feedback, Feedback.exposure_id.in_(ids)),
            shadows=_count(session, ShadowPairs, ShadowPairs.arm_id == arm),
        )
    return found


def _delete(session: Session, table: type[Table], which: ColumnElement[bool]) -> int:
    query = delete(table).where(which).execution_options(synchronize_session=False)
    return cast("CursorResult[Any]", session.execute(query)).rowcount


def _delete_exposures(session: Session, ids: Sequence[str]) -> Pruned:
    """With all that belongs to them but shadow answers, which are another arm's."""
    return Pruned(
        outcomes=_delete(session, Outcomes, Outcomes.exposure_id.in_(ids)),
        feedback=_delete(session, Feedback, Feedback.exposure_id.in_(ids)),
        exposures=_delete(session, Exposures, Exposures.id.in_(ids)),
    )


def _delete_shadows(session: Session, ids: Sequence[str]) -> Pruned:
    return Pruned(shadows=_delete(session, ShadowPairs, ShadowPairs.exposure_id.in_(ids)))


def _sum_up_usage(session: Session, ids: Sequence[int]) -> Pruned:
    """Deletes these records, and adds them to the sums of their days."""
    deleted = session.execute(
        delete(UsageRecords)
        .where(UsageRecords.id.in_(ids))
        .returning(
            UsageRecords.tenant,
            UsageRecords.adapter,
            UsageRecords.at,
            *(getattr(UsageRecords, name) for name in _TOKENS),
        )
        .execution_options(synchronize_session=False)
    ).all()
    sums: defaultdict[tuple[str, str, date], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for tenant, adapter, at, *tokens in deleted:
        total = sums[tenant, adapter, at.astimezone(UTC).date()]
        for place, count in enumerate((1, *tokens)):
            total[place] += count
    if sums:
        _add_to_days(session, sums)
    return Pruned(usage=len(deleted))


def _add_to_days(session: Session, sums: Mapping[tuple[str, str, date], Sequence[int]]) -> None:
    names = ("requests", *_TOKENS)
    rows = [
        {"tenant": tenant, "adapter": adapter, "day": day, **dict(zip(names, total, strict=True))}
        # In one order, so that two who do this at once never wait for each other.
        for (tenant, adapter, day), total in sorted(sums.items())
    ]
    insertion = insert_into(session, UsageDays)
    grown = {name: getattr(UsageDays, name) + getattr(insertion.excluded, name) for name in names}
    key = [UsageDays.tenant, UsageDays.adapter, UsageDays.day]
    session.execute(insertion.on_conflict_do_update(index_elements=key, set_=grown), rows)
