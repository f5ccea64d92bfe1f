"""The registry's tenants and their API keys."""

from __future__ import annotations

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from loragate.adapters.errors import KeyNotFound, TenantExists
from loragate.adapters.names import parse_tenant
from loragate.adapters.registry.api_keys import hash_key, mint_key
from loragate.adapters.registry.audit import record
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.pages import EVERYTHING, Page
from loragate.adapters.registry.records import KeyRecord, NewKey, TenantRecord
from loragate.adapters.registry.rows import live_tenant
from loragate.adapters.registry.snapshot import Limits
from loragate.adapters.registry.tables import ApiKeys, Tenants
from loragate.adapters.registry.trials import end_trials_of_tenant
from loragate.adapters.registry.unreadable_rows import readable

NO_LIMITS = Limits()


class Tenancy:
    """The part of `Registry` that knows tenants. ``actor`` is who asked, for the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, limits: Limits = NO_LIMITS, actor: str = "cli") -> NewKey:
        """Make a tenant and its first key. Raises InvalidName and TenantExists."""
        parse_tenant(tenant)
        with self._database.changing() as session:
            if session.get(Tenants, tenant) is not None:
                raise TenantExists(tenant)
            row = Tenants(id=tenant, created_at=wall_clock())
            _set(row, limits)
            session.add(row)
            session.flush()
            record(session, actor, "tenant.create", tenant, touched=[row])
            return _add_key(session, row, "default", actor)

    def get(self, tenant: str) -> TenantRecord:
        """Raises TenantNotFound."""
        with self._database.reading() as session:
            row = live_tenant(session, tenant)
            return TenantRecord(row.id, limits_of(row), row.created_at)

    def list(self, page: Page = EVERYTHING) -> tuple[TenantRecord, ...]:
        """By id, without the deleted ones; after a tenant's id."""
        query = select(Tenants).where(Tenants.deleted_at.is_(None), Tenants.id > page.after)
        query = query.order_by(Tenants.id).limit(page.limit)
        with self._database.reading() as session:
            return tuple(
                TenantRecord(row.id, limits_of(row), row.created_at)
                for row in session.scalars(query)
            )

    def set_limits(self, tenant: str, limits: Limits, actor: str = "cli") -> None:
        """Replace all of a tenant's limits. Raises TenantNotFound."""
        with self._database.changing() as session:
            row = live_tenant(session, tenant)
            _set(row, limits)
            record(session, actor, "tenant.limit", tenant, touched=[row])

    def delete(self, tenant: str, actor: str = "cli") -> None:
        """Its keys stop working, its adapters are served no more, and its rollouts and experiments
        end. Raises TenantNotFound.
        """
        with self._database.changing() as session:
            row = live_tenant(session, tenant)
            row.deleted_at = wall_clock()
            session.execute(
                update(ApiKeys)
                .where(ApiKeys.tenant_id == tenant, ApiKeys.revoked_at.is_(None))
                .values(revoked_at=wall_clock())
            )
            end_trials_of_tenant(session, tenant, actor)
            record(session, actor, "tenant.delete", tenant, touched=[row])

    def create_key(self, tenant: str, name: str = "", actor: str = "cli") -> NewKey:
        """A further key; ``name`` is for people. Raises TenantNotFound."""
        with self._database.changing() as session:
            return _add_key(session, live_tenant(session, tenant), name, actor)

    def list_keys(self, tenant: str, page: Page = EVERYTHING) -> tuple[KeyRecord, ...]:
        """Oldest first, the revoked ones too; after a key's id. Raises TenantNotFound, and
        KeyNotFound where the tenant has no such key.
        """
        query = select(ApiKeys).where(ApiKeys.tenant_id == tenant).limit(page.limit)
        with self._database.reading() as session:
            live_tenant(session, tenant)
            if page.after:
                last = session.get(ApiKeys, page.after)
                if last is None or last.tenant_id != tenant:
                    raise KeyNotFound(page.after)
                at, id_ = last.created_at, last.id
                query = query.where(
                    or_(ApiKeys.created_at > at, and_(ApiKeys.created_at == at, ApiKeys.id > id_))
                )
            return tuple(
                KeyRecord(row.id, row.tenant_id, row.name, row.created_at, row.revoked_at)
                for row in session.scalars(query.order_by(ApiKeys.created_at, ApiKeys.id))
            )

    def revoke_key(self, key_id: str, actor: str = "cli") -> None:
        """The key stops working; a second time changes nothing. Raises KeyNotFound."""
        with self._database.changing() as session:
            row = session.get(ApiKeys, key_id)
            if row is None:
                raise KeyNotFound(key_id)
            if row.revoked_at is None:
                row.revoked_at = wall_clock()
                owner = session.get_one(Tenants, row.tenant_id)
                record(session, actor, "key.revoke", f"{owner.id}:{key_id}", touched=[owner])


def limits_of(row: Tenants) -> Limits:
    """Raises UnreadableRecord."""
    with readable(row.id):
        return Limits(row.requests_per_minute, row.tokens_per_minute, row.max_concurrent)


def _set(row: Tenants, limits: Limits) -> None:
    row.requests_per_minute = limits.requests_per_minute
    row.tokens_per_minute = limits.tokens_per_minute
    row.max_concurrent = limits.max_concurrent


def _add_key(session: Session, owner: Tenants, name: str, actor: str) -> NewKey:
    new = mint_key(owner.id)
    # The public part has 40 bits: two alike are unlikely in one registry, not impossible.
    while session.get(ApiKeys, new.key_id) is not None:
        new = mint_key(owner.id)
    session.add(
        ApiKeys(
            id=new.key_id,
            tenant_id=owner.id,
            sha256=hash_key(new.key),
            name=name,
            created_at=wall_clock(),
        )
    )
    record(session, actor, "key.create", f"{owner.id}:{new.key_id}", touched=[owner])
    return new
