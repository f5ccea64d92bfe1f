"""Which artifacts are needed: the one rule by which files may be removed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, or_, select
from sqlalchemy.orm import aliased

from loragate.adapters.registry.states import IN_ENGINE, AdapterState
from loragate.adapters.registry.tables import Adapters, Artifacts, Tenants, Versions


def is_needed(digest: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Whether a version that counts has it for its adapter, or for what was made of it."""
    other, made = aliased(Versions), aliased(Artifacts)
    return (
        select(other.id)
        .join(Adapters, Adapters.id == other.adapter_id)
        .join(Tenants, Tenants.id == Adapters.tenant_id)
        .outerjoin(made, made.version_id == other.id)
        .where(
            or_(other.digest == digest, made.digest == digest),
            or_(
                other.state.in_(IN_ENGINE),
                and_(other.state != AdapterState.RETIRED, Tenants.deleted_at.is_(None)),
            ),
        )
        .exists()
    )
