"""The registry's adapters: publishing versions and showing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import select

from loragate.adapters.format.files import inspect
from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.audit import read_audit, record
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.merges import read_artifacts
from loragate.adapters.registry.records import AdapterRecord, ArtifactRecord, VersionRecord
from loragate.adapters.registry.rows import (
    adapter_row,
    alias_versions,
    existing_adapter_row,
    live_tenant,
    merged_status,
    new_adapter_row,
    new_version_row,
    newest_usable,
    version_of,
)
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.registry.tables import Aliases, Versions
from loragate.adapters.registry.unreadable_rows import readable
from loragate.adapters.store import ArtifactStore

_RECENT_AUDIT_ROWS: Final = 20


class Catalog:
    """The part of `Registry` that knows adapters. ``actor`` is who asked, for the audit."""

    def __init__(
        self, database: Database, store: ArtifactStore, publish_check: PublishCheck
    ) -> None:
        self._database = database
        self._store = store
        self._publish_check = publish_check

    def publish(self, adapter: AdapterName, folder: Path, actor: str = "cli") -> AdapterVersion:
        """Store the folder as the adapter's next version; no alias moves to it.

        If the newest published version is the same, byte for byte, that one is returned. Raises
        BaseModelName, InvalidAdapter, StoreError and TenantNotFound.
        """
        self._publish_check.check_name(adapter)
        with self._database.reading() as session:
            live_tenant(session, adapter.tenant)
        given = inspect(folder)
        self._publish_check.check(given)
        digest = self._store.put(given)
        # What was copied is what counts, should the folder have changed under us.
        stored = inspect(self._store.path(digest))
        self._publish_check.check(stored)
        self._store.get_ready(digest)  # here, where no requests run, and not when it is promoted
        with self._database.changing() as session:
            live_tenant(session, adapter.tenant)
            self._store.path(digest)  # a collection may have been faster: then publish again
            row = adapter_row(session, adapter) or new_adapter_row(session, adapter)
            newest = newest_usable(session, row)
            if newest is None or newest.digest != digest:
                newest = new_version_row(session, row, digest, stored)
                record(
                    session,
                    actor,
                    "adapter.publish",
                    str(adapter),
                    touched=[row, newest],
                    to_version=newest.number,
                    digest=digest,
                )
            version = version_of(adapter.tenant, adapter.name, newest)
        self._store.settle(digest)  # not earlier: until it is committed, nothing refers to it
        return version

    def show(self, adapter: AdapterName) -> AdapterRecord:
        """Raises AdapterNotFound and TenantNotFound."""
        with self._database.reading() as session:
            row = existing_adapter_row(session, adapter)
            rows = session.scalars(
                select(Versions)
                .where(Versions.adapter_id == row.id)
                .order_by(Versions.number.desc())
            ).all()
            aliases = session.scalars(
                select(Aliases).where(Aliases.adapter_id == row.id).order_by(Aliases.name)
            ).all()
            artifacts = read_artifacts(session, row.id)
            versions: dict[int, VersionRecord] = {}
            for version in rows:
                made = artifacts.get(version.id, ())
                with readable(f"{adapter}@v{version.number}"):
                    versions[version.id] = _version_record(adapter, version, aliases, made)
            known = {id_: version.version for id_, version in versions.items()}
            with readable(f"the aliases of {adapter}"):
                named = {alias.name: alias_versions(alias, known) for alias in aliases}
            recent = read_audit(session, str(adapter), _RECENT_AUDIT_ROWS)
            return AdapterRecord(adapter, named, tuple(versions.values()), recent)


def _version_record(
    adapter: AdapterName,
    row: Versions,
    aliases: Sequence[Aliases],
    artifacts: tuple[ArtifactRecord, ...],
) -> VersionRecord:
    return VersionRecord(
        version_of(adapter.tenant, adapter.name, row),
        AdapterState(row.state),
        row.reason,
        row.retiring and row.state != AdapterState.RETIRED,
        row.size_bytes,
        row.created_at,
        AdapterManifest.from_json(row.manifest),
        tuple(alias.name for alias in aliases if alias.desired_id == row.id),
        tuple(alias.name for alias in aliases if alias.serving_id == row.id),
        artifacts,
        row.pinned_at,
        row.pin_refusal,
        merged_status(row),
    )
