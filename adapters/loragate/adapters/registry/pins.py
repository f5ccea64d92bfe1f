"""The registry's pins: versions that are to stay in the engine, whoever else is asked for."""

from __future__ import annotations

from sqlalchemy.orm import Session

from loragate.adapters.names import (
    AdapterName,
    AdapterVersion,
    looks_like_version,
    parse_version,
)
from loragate.adapters.registry.audit import record_version
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.rows import (
    existing_adapter_row,
    existing_alias_row,
    existing_version_row,
    usable_version_row,
    version_of,
)
from loragate.adapters.registry.tables import Adapters, Versions


class Pinning:
    """The part of `Registry` that knows pins. ``actor`` is who asked, for the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, adapter: AdapterName, selector: str, actor: str = "cli") -> AdapterVersion:
        """Keep a version in the engine: ``v3``, or the one that an alias serves, or is to.

        The pin stays with the version, wherever the alias goes, until `unpin` or its retirement.
        Whether there is room for it only a server knows; see `refuse_pin`. Raises AdapterNotFound,
        TenantNotFound, AliasNotFound, VersionNotFound, VersionRetired and InvalidName.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            selected = _select(session, row, adapter, selector)
            version = usable_version_row(session, row, adapter, selected.number)
            if version.pinned_at is None:
                version.pinned_at = wall_clock()
                version.pin_refusal = ""
                record_version(session, row, version, actor, "version.pin")
            return version_of(adapter.tenant, adapter.name, version)

    def remove(self, adapter: AdapterName, selector: str, actor: str = "cli") -> AdapterVersion:
        """Let a version be unloaded again; raises as `pin`, but not VersionRetired."""
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = _select(session, row, adapter, selector)
            if version.pinned_at is not None:
                version.pinned_at = None
                version.pin_refusal = ""
                record_version(session, row, version, actor, "version.unpin")
            return version_of(adapter.tenant, adapter.name, version)

    def refuse(self, version: AdapterVersion, reason: str, actor: str) -> None:
        """Records why a server cannot keep a pinned version, or "" where it does."""
        with self._database.changing_states() as session:
            row = session.get(Versions, version.lora_id)
            if row is None or row.pinned_at is None or row.pin_refusal == reason:
                return
            row.pin_refusal = reason
            adapter = session.get_one(Adapters, row.adapter_id)
            action = "version.pin_refused" if reason else "version.pin_kept"
            record_version(session, adapter, row, actor, action, reason)


def _select(session: Session, row: Adapters, adapter: AdapterName, selector: str) -> Versions:
    if looks_like_version(selector):
        return existing_version_row(session, row, adapter, parse_version(selector))
    alias = existing_alias_row(session, row, adapter, selector)
    return session.get_one(Versions, alias.serving_id or alias.desired_id)
