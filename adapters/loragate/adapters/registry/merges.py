"""The registry's merged models: artifacts of versions, beside the adapters themselves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from loragate.adapters.errors import MergedInUse, NotMerged, StoreError
from loragate.adapters.format.merged_files import inspect_merged
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.audit import record
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.merged_states import AT_REST
from loragate.adapters.registry.needs import is_needed
from loragate.adapters.registry.records import ArtifactRecord
from loragate.adapters.registry.rows import (
    existing_adapter_row,
    existing_version_row,
    usable_version_row,
)
from loragate.adapters.registry.tables import Artifacts, Versions
from loragate.adapters.store import ArtifactStore

logger = logging.getLogger(__name__)
MERGED: Final = "merged"


class Merges:
    """The part of `Registry` that knows merged models. ``actor`` is who asked, for the audit."""

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._database = database
        self._store = store

    def attach(
        self, adapter: AdapterName, number: int, folder: Path, actor: str = "cli"
    ) -> ArtifactRecord:
        """Store a merged model as the version's; an earlier one makes room for it.

        Whether it says what the version says is the caller's to know. Raises BaseModelError,
        InvalidAdapter, StoreError, AdapterNotFound, TenantNotFound, VersionNotFound,
        VersionRetired, and MergedInUse while a server holds an earlier one.
        """
        files = inspect_merged(folder)
        digest = self._store.put(files)
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = usable_version_row(session, row, adapter, number)
            self._store.path(digest)  # a collection may have been faster: then attach it again
            found = session.get(Artifacts, (version.id, MERGED))
            before = digest if found is None else found.digest
            if before != digest and version.merged_state not in ("", *AT_REST):
                named = adapter.tenant, adapter.name, f"v{number}"
                raise MergedInUse(*named, ("a server, which holds it",))
            if found is not None and before == digest:
                self._store.settle(digest)  # it is in a row already
                return artifact_record(found)
            made = session.merge(
                Artifacts(
                    version_id=version.id,
                    kind=MERGED,
                    digest=digest,
                    size_bytes=files.size_bytes,
                    created_at=wall_clock(),
                )
            )
            session.flush()
            # Marked before the commit, removed after it. Removed here, the model that the version
            # still has would be gone if the commit failed; not marked here, it would stay for ever
            # if this process died between the two.
            if before != digest:
                self._store.unsettle(before)
            record(
                session,
                actor,
                "version.merge",
                f"{adapter}@v{number}",
                touched=[row, version],
                to_version=number,
                digest=digest,
            )
            attached = artifact_record(made)
        self._store.settle(digest)
        if before != digest:
            self._discard(before)
        return attached

    def _discard(self, digest: str) -> None:
        """The files go, unless something needs them by now: that is asked again, in a change."""
        try:
            with self._database.changing() as session:
                if not session.scalar(select(is_needed(literal(digest)))):
                    self._store.remove(digest)
            self._store.sweep()
        except StoreError as error:  # the new model is attached; a collection takes the old one
            logger.warning("the replaced merged model is left to a collection: %s", error)

    def folder(self, adapter: AdapterName, number: int) -> Path:
        """The folder of the version's merged model, which is read-only. Raises NotMerged where
        there is none; further AdapterNotFound, TenantNotFound and VersionNotFound.
        """
        with self._database.reading() as session:
            row = existing_adapter_row(session, adapter)
            version = existing_version_row(session, row, adapter, number)
            found = session.get(Artifacts, (version.id, MERGED))
            if found is None:
                raise NotMerged(
                    f"version {adapter}@v{number} has no merged model; make it with `loragate "
                    f"merge {adapter}@v{number}`"
                )
            return self._store.path(found.digest)


def read_artifacts(session: Session, adapter_id: int) -> dict[int, tuple[ArtifactRecord, ...]]:
    """Of all versions of an adapter, by their row ids."""
    rows = session.scalars(
        select(Artifacts).join(Versions).where(Versions.adapter_id == adapter_id)
    )
    found: dict[int, tuple[ArtifactRecord, ...]] = {}
    for row in rows:
        found[row.version_id] = (*found.get(row.version_id, ()), artifact_record(row))
    return found


def artifact_record(row: Artifacts) -> ArtifactRecord:
    return ArtifactRecord(row.kind, row.digest, row.size_bytes, row.created_at)
