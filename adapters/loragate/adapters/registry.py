"""What exists: tenants, keys, adapters, versions, aliases, audit and usage, in one database.

All calls block; from a coroutine use ``asyncio.to_thread``. The registry knows what is to be
served, not what is: a server watches it (`snapshot.SnapshotWatcher`) and follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from loragate.adapters.audit_log import read_audit
from loragate.adapters.catalog import Catalog
from loragate.adapters.database import Database
from loragate.adapters.ledger import UsageLedger
from loragate.adapters.manifest import AdapterManifest
from loragate.adapters.names import AdapterVersion
from loragate.adapters.records import (
    AdapterRecord,
    AuditRow,
    KeyRecord,
    NewKey,
    TenantRecord,
    UsageRow,
    UsageTotal,
    VersionRecord,
)
from loragate.adapters.rows import PUBLISHED, live_tenant
from loragate.adapters.snapshot import AdapterListing, Limits, Snapshot
from loragate.adapters.store import ArtifactStore
from loragate.adapters.tables import Adapters, Aliases, ApiKeys, Revision, Tenants, Versions
from loragate.adapters.tenancy import Tenancy, limits_of

__all__ = [
    "AdapterListing",
    "AdapterRecord",
    "AuditRow",
    "KeyRecord",
    "Limits",
    "NewKey",
    "Registry",
    "TenantRecord",
    "UsageRow",
    "UsageTotal",
    "VersionRecord",
]


class Registry(Tenancy, Catalog, UsageLedger):
    """The truth about what is to be served. Threads and processes may share it; `close` ends it.

    Making one brings the database's schema up to date. Every call may raise StoreError. Each change
    is one transaction with its audit row and a new revision.
    """

    def __init__(self, url: str, store: ArtifactStore) -> None:
        self._database = Database(url)
        self._store = store
        self._manifests: dict[int, AdapterManifest] = {}

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def audit(self, subject: str | None = None, limit: int = 50) -> tuple[AuditRow, ...]:
        """Newest first: of all, or of a subject and what belongs to it, as ``acme`` or
        ``acme/support``.
        """
        with self._database.reading() as session:
            return read_audit(session, subject, limit)

    def adapters(self, tenant: str | None = None) -> list[AdapterListing]:
        """By tenant and name, of one tenant or of all. Raises TenantNotFound."""
        with self._database.reading() as session:
            if tenant is not None:
                live_tenant(session, tenant)
            return _listings(session, tenant)

    def revision(self) -> int:
        """Grows with every change; one row, read by its key."""
        with self._database.reading() as session:
            return _revision(session)

    def snapshot(self) -> Snapshot:
        """All that a server needs, as of one moment."""
        with self._database.reading() as session:
            tenants = session.scalars(select(Tenants).where(Tenants.deleted_at.is_(None))).all()
            limits = {row.id: limits_of(row) for row in tenants}
            keys = {
                row.sha256: row.tenant_id
                for row in session.scalars(select(ApiKeys).where(ApiKeys.revoked_at.is_(None)))
                if row.tenant_id in limits
            }
            listings = _listings(session, None)
            manifests = self._all_manifests(session)
            return Snapshot.of(
                _revision(session),
                limits,
                keys,
                listings,
                {
                    version.lora_id: manifests[version.lora_id]
                    for listing in listings
                    for version in listing.versions
                },
            )

    def _all_manifests(self, session: Session) -> dict[int, AdapterManifest]:
        # A version never changes and ids only grow, so each manifest is parsed once in a process's
        # life.
        known = self._manifests
        query = select(Versions.id, Versions.manifest).where(Versions.id > max(known, default=0))
        new = {id_: AdapterManifest.from_json(text) for id_, text in session.execute(query)}
        self._manifests = known | new
        return known | new


def _revision(session: Session) -> int:
    return session.scalars(select(Revision.value)).one()


def _listings(session: Session, tenant: str | None) -> list[AdapterListing]:
    mine = Tenants.deleted_at.is_(None) if tenant is None else Tenants.id == tenant
    adapters = select(Adapters).join(Tenants).where(mine)
    versions = (
        select(Versions.adapter_id, Versions.id, Versions.number, Versions.digest, Versions.state)
        .join(Adapters, Adapters.id == Versions.adapter_id)
        .join(Tenants)
        .where(mine)
        .order_by(Versions.number)
    )
    aliases = (
        select(Aliases.adapter_id, Aliases.name, Aliases.version_id)
        .join(Adapters, Adapters.id == Aliases.adapter_id)
        .join(Tenants)
        .where(mine)
        .order_by(Aliases.name)
    )
    shelves = {
        row.id: _Shelf(row.tenant_id, row.name)
        for row in session.scalars(adapters.order_by(Adapters.tenant_id, Adapters.name))
    }
    for adapter_id, lora_id, number, digest, state in session.execute(versions):
        shelves[adapter_id].add_version(lora_id, number, digest, state)
    for adapter_id, alias, lora_id in session.execute(aliases):
        shelves[adapter_id].add_alias(alias, lora_id)
    return [shelf.listing() for shelf in shelves.values()]


@dataclass(slots=True)
class _Shelf:
    """A listing while its rows are read."""

    tenant: str
    name: str
    published: dict[int, AdapterVersion] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    aliases: dict[str, AdapterVersion] = field(default_factory=dict)

    def add_version(self, lora_id: int, number: int, digest: str, state: str) -> None:
        version = AdapterVersion(self.tenant, self.name, number, digest, lora_id)
        if state == PUBLISHED:
            self.published[lora_id] = version
        else:
            self.retired.add(version.version)

    def add_alias(self, alias: str, lora_id: int) -> None:
        self.aliases[alias] = self.published[lora_id]

    def listing(self) -> AdapterListing:
        return AdapterListing(
            self.tenant,
            self.name,
            MappingProxyType(self.aliases),
            tuple(self.published.values()),
            frozenset(self.retired),
        )
