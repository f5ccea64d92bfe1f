"""Reading a snapshot from the database: only what has changed since the one before.

The queries go by the revisions of rows, which are indexed, so that their cost is in the number of
changes and not in what the registry holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from loragate.adapters.listings import AliasVersions, Shelf, VersionEntry
from loragate.adapters.manifest import AdapterManifest
from loragate.adapters.rows import alias_versions, merged_standing, version_of
from loragate.adapters.snapshot import Snapshot, TenantEntry
from loragate.adapters.states import AdapterState
from loragate.adapters.tables import Adapters, Aliases, ApiKeys, Revision, Tenants, Versions
from loragate.adapters.tenancy import limits_of


def read_revision(session: Session) -> int:
    return session.scalars(select(Revision.value)).one()


def read_snapshot(session: Session, before: Snapshot) -> Snapshot:
    """The registry as the session sees it. ``before`` is of the same database, or empty."""
    revision = read_revision(session)
    if revision == before.revision:
        return before
    if revision < before.revision:
        before = Snapshot()  # the database was replaced by an older one, such as a backup
    tenants = _tenants(session, before.revision)
    return before.renewed(revision, tenants, _shelves(session, before, tenants))


# Subqueries rather than joins: SQLite may begin a join with the wrong table, and read it whole.


def _tenants(session: Session, seen: int) -> dict[str, TenantEntry | None]:
    changed = select(Tenants.id).where(Tenants.revision > seen)
    working = select(ApiKeys.tenant_id, ApiKeys.sha256).where(
        ApiKeys.tenant_id.in_(changed), ApiKeys.revoked_at.is_(None)
    )
    keys: dict[str, list[str]] = {}
    for tenant, sha256 in session.execute(working.order_by(ApiKeys.id)):
        keys.setdefault(tenant, []).append(sha256)
    return {
        row.id: None
        if row.deleted_at is not None
        else TenantEntry(limits_of(row), tuple(keys.get(row.id, ())))
        for row in session.scalars(select(Tenants).where(Tenants.revision > seen))
    }


def _shelves(
    session: Session, before: Snapshot, tenants: Mapping[str, TenantEntry | None]
) -> Iterator[Shelf]:
    changed = select(Adapters.id).where(Adapters.revision > before.revision)
    named = select(Adapters.id, Adapters.tenant_id, Adapters.name).where(Adapters.id.in_(changed))
    names = {
        id_: (tenant, name)
        for id_, tenant, name in session.execute(named)
        # Long deleted ones may change still, when an engine lets go of them; nobody looks there.
        if tenants.get(tenant) is not None or before.has_tenant(tenant)
    }
    # A new version comes after those that are known, and one that is known keeps its place.
    entries = {id_: dict(before.entries(*name)) for id_, name in names.items()}
    for id_, entry in _entries(session, before.revision, names):
        entries[id_][entry.version.lora_id] = entry
    pointers = select(Aliases).where(Aliases.adapter_id.in_(changed)).order_by(Aliases.name)
    versions = {
        id_: {lora_id: entry.version for lora_id, entry in entries[id_].items()} for id_ in names
    }
    aliases: dict[int, dict[str, AliasVersions]] = {id_: {} for id_ in names}
    for alias in session.scalars(pointers):
        if (id_ := alias.adapter_id) in names:
            aliases[id_][alias.name] = alias_versions(alias, versions[id_])
    for id_, (tenant, name) in names.items():
        yield Shelf.of(tenant, name, entries[id_], aliases[id_])


def _entries(
    session: Session, seen: int, names: Mapping[int, tuple[str, str]]
) -> Iterator[tuple[int, VersionEntry]]:
    changed = session.scalars(select(Versions).where(Versions.revision > seen))
    # Sorted here: asked for this order, SQLite would rather walk through all versions by id.
    for row in sorted(changed, key=lambda row: row.id):
        if row.adapter_id not in names:
            continue
        tenant, name = names[row.adapter_id]
        yield (
            row.adapter_id,
            VersionEntry(
                version_of(tenant, name, row),
                AdapterState(row.state),
                row.reason,
                row.retiring,
                AdapterManifest.from_json(row.manifest),
                row.pinned_at,
                merged_standing(row),
            ),
        )
