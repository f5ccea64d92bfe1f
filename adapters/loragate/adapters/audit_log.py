"""Recording a change: its audit row and the new revision, in the change's own transaction."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from loragate.adapters.records import AuditRow
from loragate.adapters.tables import Audit, Revision


def record(
    session: Session,
    actor: str,
    action: str,
    subject: str,
    *,
    from_version: int | None = None,
    to_version: int | None = None,
    digest: str | None = None,
    reason: str = "",
) -> None:
    session.execute(update(Revision).values(value=Revision.value + 1))
    session.add(
        Audit(
            at=datetime.now(UTC),
            actor=actor,
            action=action,
            subject=subject,
            from_version=from_version,
            to_version=to_version,
            digest=digest,
            reason=reason,
        )
    )


def read_audit(session: Session, subject: str | None, limit: int) -> tuple[AuditRow, ...]:
    """Newest first. A subject stands for all that belongs to it, a tenant for its adapters."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(
            or_(
                Audit.subject == subject,
                *(Audit.subject.startswith(subject + mark, autoescape=True) for mark in "/@:"),
            )
        )
    return tuple(
        AuditRow(
            row.id,
            row.at,
            row.actor,
            row.action,
            row.subject,
            row.from_version,
            row.to_version,
            row.digest,
            row.reason,
        )
        for row in session.scalars(query)
    )
