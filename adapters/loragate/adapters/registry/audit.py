"""Recording a change: its audit row and the new revision, in the change's own transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.records import AuditRow
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.registry.tables import Adapters, Audit, Revision, Tenants, Versions


def record(
    session: Session,
    actor: str,
    action: str,
    subject: str,
    *,
    touched: Sequence[Tenants | Adapters | Versions] = (),
    from_version: int | None = None,
    to_version: int | None = None,
    from_state: AdapterState | None = None,
    to_state: AdapterState | None = None,
    digest: str | None = None,
    reason: str = "",
) -> None:
    """``touched``: the rows that the change shows in, which snapshots then read again."""
    grown = update(Revision).values(value=Revision.value + 1).returning(Revision.value)
    revision = session.scalars(grown).one()
    for row in touched:
        row.revision = revision
    session.add(
        Audit(
            at=wall_clock(),
            actor=actor,
            action=action,
            subject=subject,
            from_version=from_version,
            to_version=to_version,
            from_state=from_state,
            to_state=to_state,
            digest=digest,
            reason=reason,
        )
    )


def record_version(
    session: Session,
    adapter: Adapters,
    row: Versions,
    actor: str,
    action: str,
    reason: str = "",
    *,
    from_state: AdapterState | None = None,
    to_state: AdapterState | None = None,
) -> None:
    """A change of one version, which its adapter shows too."""
    record(
        session,
        actor,
        action,
        f"{adapter.tenant_id}/{adapter.name}@v{row.number}",
        touched=[adapter, row],
        from_state=from_state,
        to_state=to_state,
        digest=row.digest,
        reason=reason,
    )


def read_audit(
    session: Session, subject: str | None, limit: int, after: int | None = None
) -> tuple[AuditRow, ...]:
    """Newest first, from after the row with this id. A subject stands for all that belongs to it, a
    tenant for its adapters.
    """
    query = select(Audit).where(*_of(subject)).order_by(Audit.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Audit.id < after)
    return tuple(map(_row, session.scalars(query)))


def read_audit_after(
    session: Session, seen: int, subject: str | None, limit: int
) -> tuple[AuditRow, ...]:
    """Oldest first, from the row after the one with this id."""
    query = select(Audit).where(Audit.id > seen, *_of(subject)).order_by(Audit.id).limit(limit)
    return tuple(map(_row, session.scalars(query)))


def _of(subject: str | None) -> list[ColumnElement[bool]]:
    if subject is None:
        return []
    return [
        or_(
            Audit.subject == subject,
            *(Audit.subject.startswith(subject + mark, autoescape=True) for mark in "/@:"),
        )
    ]


def _row(row: Audit) -> AuditRow:
    return AuditRow(
        row.id,
        row.at,
        row.actor,
        row.action,
        row.subject,
        row.from_version,
        row.to_version,
        row.digest,
        row.reason,
        row.from_state,
        row.to_state,
    )


class AuditLog:
    """Who changed what, when and why."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self, subject: str | None = None, limit: int = 50, after: int | None = None
    ) -> tuple[AuditRow, ...]:
        """Newest first, from after the row with this id: of all, or of a subject and what belongs
        to it, as ``acme`` or ``acme/support``.
        """
        with self._database.reading() as session:
            return read_audit(session, subject, limit, after)

    def after(
        self, seen: int, subject: str | None = None, limit: int = 500
    ) -> tuple[AuditRow, ...]:
        """The rows that came after the one with this id, oldest first; of a subject as `list`."""
        with self._database.reading() as session:
            return read_audit_after(session, seen, subject, limit)
