"""Reading a snapshot from the database: only what has changed since the one before.

The queries go by the revisions of rows, which are indexed, so that their cost is in the number of
changes and not in what the registry holds.

A row that cannot be read, damaged or of a newer loragate, is left out by itself: were it to end the
reading, revoked keys would go on working. A version of which only the number is known is FAILED in
the snapshot, with the reason; in the database it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, load_only

from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.listings import (
    AdapterSnapshot,
    AliasVersions,
    Unreadable,
    VersionEntry,
)
from loragate.adapters.registry.rows import alias_versions, merged_status, version_of
from loragate.adapters.registry.snapshot import Snapshot, TenantEntry
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.registry.tables import (
    Adapters,
    Aliases,
    ApiKeys,
    Revision,
    Tenants,
    Versions,
)
from loragate.adapters.registry.tenants import limits_of
from loragate.adapters.registry.unreadable_rows import (
    UnreadableRow,
    is_of_a_row,
    read_apart,
    why_unreadable,
)

Record = TypeVar("Record")
_UNKNOWN: Final = AdapterManifest(rank=1, alpha=1.0, target_modules=())
_OF_AN_ENTRY: Final = (
    Versions.adapter_id,
    Versions.number,
    Versions.digest,
    Versions.state,
    Versions.reason,
    Versions.retiring,
    Versions.manifest,
    Versions.pinned_at,
    Versions.merged_since,
    Versions.merged_state,
    Versions.merged_reason,
)
_OF_AN_ALIAS: Final = (
    Aliases.desired_id,
    Aliases.serving_id,
    Aliases.desired_mode,
    Aliases.serving_mode,
)
# Made once: to put the options together takes as long as the database does, at each change.
_REVISION: Final = select(Revision.value)
_ENTRIES: Final = select(Versions).options(load_only(*_OF_AN_ENTRY))
_POINTERS: Final = select(Aliases).options(load_only(*_OF_AN_ALIAS)).order_by(Aliases.name)


def read_revision(session: Session) -> int:
    return session.scalars(_REVISION).one()


def read_snapshot(session: Session, before: Snapshot) -> Snapshot:
    """The registry as the session sees it. ``before`` is of the same database, or empty."""
    revision = read_revision(session)
    if revision == before.revision:
        return before
    if revision < before.revision:
        before = Snapshot()  # the database was replaced by an older one, such as a backup
    tenants = _tenants(session, before.revision)
    if any(unreadable.subject in tenants for unreadable in before.unreadable()):
        # Such a tenant may be readable now, and then its adapters are too, without a change.
        before = Snapshot()
        tenants = _tenants(session, before.revision)
    return before.renewed(revision, tenants, _shelves(session, before, tenants))


# Subqueries rather than joins: SQLite may begin a join with the wrong table, and read it whole.


def _tenants(session: Session, seen: int) -> dict[str, TenantEntry | Unreadable | None]:
    is_changed = Tenants.revision > seen
    working = select(ApiKeys.tenant_id, ApiKeys.sha256).where(
        ApiKeys.tenant_id.in_(select(Tenants.id).where(is_changed)), ApiKeys.revoked_at.is_(None)
    )
    keys: dict[str, list[str]] = {}
    for tenant, sha256 in session.execute(working.order_by(ApiKeys.id)):
        keys.setdefault(tenant, []).append(sha256)

    def read(which: ColumnElement[bool]) -> list[tuple[str, TenantEntry | None]]:
        return [
            (
                row.id,
                None
                if row.deleted_at is not None
                else TenantEntry(limits_of(row), tuple(keys.get(row.id, ()))),
            )
            for row in session.scalars(select(Tenants).where(which))
        ]

    found: dict[str, TenantEntry | Unreadable | None] = {}
    for record in _changed(session, Tenants.id, is_changed, read):
        if isinstance(record, UnreadableRow):
            found[record.key] = Unreadable(record.key, record.reason)
        else:
            tenant, found[tenant] = record
    return {tenant: entry for tenant, entry in found.items() if _is_name(tenant)}


def _shelves(
    session: Session,
    before: Snapshot,
    tenants: Mapping[str, TenantEntry | Unreadable | None],
) -> Iterator[AdapterSnapshot]:
    changed = select(Adapters.id).where(Adapters.revision > before.revision)
    named = select(Adapters.id, Adapters.tenant_id, Adapters.name).where(Adapters.id.in_(changed))
    names = {
        id_: (tenant, name)
        for id_, tenant, name in session.execute(named)
        # Long deleted ones may change still, when an engine lets go of them; nobody looks there.
        if (isinstance(tenants.get(tenant), TenantEntry) or before.has_tenant(tenant))
        and _is_name(name)
    }
    # A new version comes after those that are known, and one that is known keeps its place.
    entries = {id_: dict(before.entries(*name)) for id_, name in names.items()}
    unreadable = {id_: _left_out(before, entries[id_], *name) for id_, name in names.items()}
    for id_, entry, reason in _entries(session, before.revision, names):
        entries[id_][entry.version.lora_id] = entry
        unreadable[id_].pop(str(entry.version), None)
        if reason:
            unreadable[id_][str(entry.version)] = reason
    versions = {
        id_: {lora_id: entry.version for lora_id, entry in entries[id_].items()} for id_ in names
    }
    aliases: dict[int, dict[str, AliasVersions]] = {id_: {} for id_ in names}
    for alias in session.scalars(_POINTERS.where(Aliases.adapter_id.in_(changed))):
        if (id_ := alias.adapter_id) in names and _is_name(alias.name):
            try:
                aliases[id_][alias.name] = alias_versions(alias, versions[id_])
            except LookupError as error:
                tenant, name = names[id_]
                unreadable[id_][f"{tenant}/{name}@{alias.name}"] = why_unreadable(error)
    for id_, (tenant, name) in names.items():
        left_out = [Unreadable(*each) for each in unreadable[id_].items()]
        yield AdapterSnapshot.of(tenant, name, entries[id_], aliases[id_], left_out)


def _is_name(found: object) -> bool:
    """In SQLite a damaged text may be of another type. Nobody could ask by such a name, and beside
    real ones it could not even be sorted.
    """
    return isinstance(found, str)


def _left_out(
    before: Snapshot, entries: Mapping[int, VersionEntry], tenant: str, name: str
) -> dict[str, str]:
    """Of an adapter's versions those that could not be read so far; aliases are all read anew."""
    versions = {str(entry.version) for entry in entries.values()}
    return {subject: reason for subject, reason in before.unreadable() if subject in versions}


def _entries(
    session: Session, seen: int, names: Mapping[int, tuple[str, str]]
) -> list[tuple[int, VersionEntry, str]]:
    """By their adapters' rows and oldest first, each with why it could not be read, or ""."""

    def read(which: ColumnElement[bool]) -> list[tuple[int, VersionEntry, str]]:
        rows = session.scalars(_ENTRIES.where(which))
        return [
            (row.adapter_id, _entry(*names[row.adapter_id], row), "")
            for row in rows
            if row.adapter_id in names
        ]

    found: list[tuple[int, VersionEntry, str]] = []
    for record in _changed(session, Versions.id, Versions.revision > seen, read):
        if not isinstance(record, UnreadableRow):
            found.append(record)
        elif (failed := _failed_entry(session, record, names)) is not None:
            found.append(failed)
    # Sorted here: asked for this order, SQLite would rather walk through all versions by id.
    return sorted(found, key=lambda each: each[1].version.lora_id)


def _entry(tenant: str, name: str, row: Versions) -> VersionEntry:
    return VersionEntry(
        version_of(tenant, name, row),
        AdapterState(row.state),
        row.reason,
        row.retiring,
        AdapterManifest.from_json(row.manifest),
        row.pinned_at,
        merged_status(row),
    )


def _failed_entry(
    session: Session, unreadable: UnreadableRow[int], names: Mapping[int, tuple[str, str]]
) -> tuple[int, VersionEntry, str] | None:
    """Instead of an entry that cannot be read; None where not even its adapter is known."""
    query = select(Versions.adapter_id, Versions.number, Versions.digest, Versions.state)
    adapter_id, number, digest, state = session.execute(
        query.where(Versions.id == unreadable.key)
    ).one()
    if adapter_id not in names:
        return None
    version = AdapterVersion(*names[adapter_id], number, digest, unreadable.key)
    known = AdapterState.RETIRED if state == AdapterState.RETIRED else AdapterState.FAILED
    reason = f"unreadable_record: {unreadable.reason}"
    return adapter_id, VersionEntry(version, known, reason, False, _UNKNOWN), unreadable.reason


def _changed(
    session: Session,
    key: Any,
    is_changed: ColumnElement[bool],
    read: Callable[[ColumnElement[bool]], list[Record]],
) -> Sequence[Record | UnreadableRow[Any]]:
    """All that has changed in one query; in several where one of the rows cannot be read."""
    try:
        return read(is_changed)
    except Exception as error:
        if not is_of_a_row(error):
            raise
    keys = session.scalars(select(key).where(is_changed)).all()
    return list(read_apart(lambda some: read(key.in_(some)), keys))
