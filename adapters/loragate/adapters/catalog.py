"""The registry's adapters: publishing versions, moving aliases, retiring."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from loragate.adapters.adapter_files import inspect
from loragate.adapters.audit_log import read_audit, record
from loragate.adapters.database import Database
from loragate.adapters.errors import NothingToRollBack, VersionInUse
from loragate.adapters.manifest import AdapterManifest
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion, parse_alias
from loragate.adapters.records import AdapterRecord, VersionRecord
from loragate.adapters.rows import (
    PUBLISHED,
    RETIRED,
    adapter_row,
    existing_adapter_row,
    existing_alias_row,
    existing_version_row,
    live_tenant,
    new_adapter_row,
    new_version_row,
    newest_published,
    published_row,
    version_of,
    version_row,
)
from loragate.adapters.store import ArtifactStore
from loragate.adapters.tables import Adapters, Aliases, Audit, Versions

_SET: Final = "alias.set"
_DELETE: Final = "alias.delete"
_ROLLBACK: Final = "alias.rollback"
_RECENT_AUDIT_ROWS: Final = 20


class Catalog:
    """The part of `Registry` that knows adapters. ``actor`` is who asked, for the audit."""

    _database: Database
    _store: ArtifactStore

    def publish(self, adapter: AdapterName, folder: Path, actor: str = "cli") -> AdapterVersion:
        """Store the folder as the adapter's next version; no alias moves to it.

        If the newest published version is the same, byte for byte, that one is returned. Raises
        InvalidAdapter, StoreError and TenantNotFound.
        """
        with self._database.reading() as session:
            live_tenant(session, adapter.tenant)
        digest = self._store.put(inspect(folder))
        # What was copied is what counts, should the folder have changed under us.
        stored = inspect(self._store.path(digest))
        with self._database.changing() as session:
            live_tenant(session, adapter.tenant)
            row = adapter_row(session, adapter) or new_adapter_row(session, adapter)
            newest = newest_published(session, row)
            if newest is None or newest.digest != digest:
                newest = new_version_row(session, row, digest, stored)
                record(
                    session,
                    actor,
                    "adapter.publish",
                    str(adapter),
                    to_version=newest.number,
                    digest=digest,
                )
            return version_of(adapter.tenant, adapter.name, newest)

    def show(self, adapter: AdapterName) -> AdapterRecord:
        """Raises AdapterNotFound and TenantNotFound."""
        with self._database.reading() as session:
            row = existing_adapter_row(session, adapter)
            rows = session.scalars(
                select(Versions)
                .where(Versions.adapter_id == row.id)
                .order_by(Versions.number.desc())
            ).all()
            aliases = {
                alias.name: alias.version_id
                for alias in session.scalars(
                    select(Aliases).where(Aliases.adapter_id == row.id).order_by(Aliases.name)
                )
            }
            versions = {version.id: _version_record(adapter, version, aliases) for version in rows}
            return AdapterRecord(
                adapter,
                {alias: versions[version_id].version for alias, version_id in aliases.items()},
                tuple(versions.values()),
                read_audit(session, str(adapter), _RECENT_AUDIT_ROWS),
            )

    def set_alias(
        self, adapter: AdapterName, alias: str, number: int, actor: str = "cli", reason: str = ""
    ) -> AdapterVersion:
        """Point an alias, new or not, to a version; ``champion`` is the one that is served by name.

        Raises InvalidName, AdapterNotFound, TenantNotFound, VersionNotFound and VersionRetired.
        """
        parse_alias(alias)
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = published_row(session, row, adapter, number)
            _point(session, row, adapter, alias, version, actor, _SET, reason)
            return version_of(adapter.tenant, adapter.name, version)

    def rollback(self, adapter: AdapterName, actor: str = "cli") -> AdapterVersion:
        """Point the champion back to what it was before; again goes further back, never forward.

        Versions that were retired since are passed over. Raises AdapterNotFound, TenantNotFound,
        AliasNotFound (no champion) and NothingToRollBack.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            current = existing_alias_row(session, row, adapter, CHAMPION)
            now = session.get_one(Versions, current.version_id)
            for number in reversed(_earlier_champions(session, adapter)):
                version = version_row(session, row, number)
                if version is not None and version.state == PUBLISHED and version is not now:
                    _point(session, row, adapter, CHAMPION, version, actor, _ROLLBACK, "")
                    return version_of(adapter.tenant, adapter.name, version)
            raise NothingToRollBack(adapter.tenant, adapter.name, f"v{now.number}")

    def delete_alias(self, adapter: AdapterName, alias: str, actor: str = "cli") -> None:
        """Raises AdapterNotFound, TenantNotFound and AliasNotFound."""
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            found = existing_alias_row(session, row, adapter, alias)
            version = session.get_one(Versions, found.version_id)
            session.delete(found)
            record(
                session,
                actor,
                _DELETE,
                f"{adapter}@{alias}",
                from_version=version.number,
                digest=version.digest,
            )

    def retire(self, adapter: AdapterName, number: int, actor: str = "cli") -> AdapterVersion:
        """The version is served no more and its number stays taken; a second time changes nothing.

        Raises AdapterNotFound, TenantNotFound, VersionNotFound and VersionInUse.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = existing_version_row(session, row, adapter, number)
            aliases = session.scalars(
                select(Aliases.name).where(Aliases.version_id == version.id).order_by(Aliases.name)
            ).all()
            if aliases:
                raise VersionInUse(adapter.tenant, adapter.name, f"v{number}", tuple(aliases))
            if version.state != RETIRED:
                version.state = RETIRED
                record(
                    session,
                    actor,
                    "version.retire",
                    str(adapter),
                    from_version=number,
                    digest=version.digest,
                )
            return version_of(adapter.tenant, adapter.name, version)


def _version_record(adapter: AdapterName, row: Versions, aliases: dict[str, int]) -> VersionRecord:
    return VersionRecord(
        version_of(adapter.tenant, adapter.name, row),
        row.state,
        row.size_bytes,
        row.created_at,
        AdapterManifest.from_json(row.manifest),
        tuple(alias for alias, version_id in aliases.items() if version_id == row.id),
    )


def _point(
    session: Session,
    row: Adapters,
    adapter: AdapterName,
    alias: str,
    version: Versions,
    actor: str,
    action: str,
    reason: str,
) -> None:
    """Move the alias and record it, unless it points there already."""
    before: Versions | None = None
    found = session.get(Aliases, (row.id, alias))
    if found is None:
        found = Aliases(adapter_id=row.id, name=alias)
        session.add(found)
    else:
        before = session.get_one(Versions, found.version_id)
    if before is version:
        return
    found.version_id = version.id
    found.updated_at = datetime.now(UTC)
    record(
        session,
        actor,
        action,
        f"{adapter}@{alias}",
        from_version=None if before is None else before.number,
        to_version=version.number,
        digest=version.digest,
        reason=reason,
    )


def _earlier_champions(session: Session, adapter: AdapterName) -> list[int]:
    """The champion's versions before the current one, oldest first, without those rolled back."""
    rows = session.scalars(
        select(Audit).where(Audit.subject == f"{adapter}@{CHAMPION}").order_by(Audit.id)
    )
    numbers: list[int] = []
    for row in rows:
        match row.action, row.to_version:
            case (str(action), int(number)) if action == _ROLLBACK:
                del numbers[_last_index(numbers, number) + 1 :]
            case (_, int(number)):
                numbers.append(number)
            case _:
                numbers.clear()
    return numbers[:-1]


def _last_index(numbers: list[int], number: int) -> int:
    return len(numbers) - 1 - numbers[::-1].index(number)
