"""The registry's usage records: what each request took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, func, literal, or_, select, union_all

from loragate.adapters.registry.database import Database
from loragate.adapters.registry.insertion import insert_new
from loragate.adapters.registry.pages import EVERYTHING, Page
from loragate.adapters.registry.records import UsageRow, UsageTotal
from loragate.adapters.registry.tables import UsageDays, UsageRecords

_LONGEST_SUM_SECONDS: Final = 300.0
_FIELDS = tuple(field.name for field in fields(UsageRow))


class UsageLedger:
    """The part of `Registry` that knows usage. Writing it does not change the revision."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, records: Sequence[UsageRow]) -> None:
        """Write those that are not written yet, by their ``row_id``, or, when anything is raised,
        none. A record that can never be stored is logged and left out.
        """
        if not records:
            return
        with self._database.writing() as session:
            insert_new(session, UsageRecords, records)

    def list(
        self, tenant: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> tuple[UsageRow, ...]:
        """Newest first. ``since`` is an aware datetime."""
        query = select(*(getattr(UsageRecords, name) for name in _FIELDS))
        query = query.where(*_filter(tenant, since)).limit(limit)
        with self._database.reading() as session:
            rows = session.execute(query.order_by(UsageRecords.at.desc(), UsageRecords.id.desc()))
            return tuple(UsageRow(*row) for row in rows)

    def totals(
        self,
        tenant: str | None = None,
        since: datetime | None = None,
        page: Page = EVERYTHING,
    ) -> tuple[UsageTotal, ...]:
        """One sum for each tenant and adapter version, in that order; after
        ``acme/acme/support@v3``, the tenant and what it used.

        Of records that are kept no longer there are sums by day: ``since`` counts its whole day
        (UTC) of these.
        """
        counts = "prompt_tokens", "completion_tokens", "cached_tokens"
        records = select(
            UsageRecords.tenant,
            UsageRecords.adapter,
            literal(1).label("requests"),
            *(getattr(UsageRecords, name) for name in counts),
        ).where(*_filter(tenant, since))
        days = select(
            UsageDays.tenant,
            UsageDays.adapter,
            UsageDays.requests,
            *(getattr(UsageDays, name) for name in counts),
        )
        if tenant is not None:
            days = days.where(UsageDays.tenant == tenant)
        if since is not None:
            days = days.where(UsageDays.day >= since.astimezone(UTC).date())
        both = union_all(records, days).subquery()
        by = both.c.tenant, both.c.adapter
        sums = (func.sum(both.c[name]) for name in ("requests", *counts))
        query = select(*by, *sums).group_by(*by).order_by(*by).limit(page.limit)
        if (after := page.after_pair()) is not None:
            owner, used = after
            query = query.where(or_(by[0] > owner, and_(by[0] == owner, by[1] > used)))
        with self._database.reading(most_seconds=_LONGEST_SUM_SECONDS) as session:
            return tuple(
                UsageTotal(owner, adapter, *(int(count) for count in counted))
                for owner, adapter, *counted in map(tuple, session.execute(query))
            )


def _filter(tenant: str | None, since: datetime | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if tenant is not None:
        conditions.append(UsageRecords.tenant == tenant)
    if since is not None:
        conditions.append(UsageRecords.at >= since)
    return conditions
