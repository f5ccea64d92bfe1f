"""The registry's versions moving from state to state, and out of service."""

from __future__ import annotations

from typing import Final

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from loragate.adapters.errors import VersionHeld, VersionInUse, VersionNotFound
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.audit import record_version
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.merged_serving import want_merged_no_longer
from loragate.adapters.registry.rows import (
    existing_adapter_row,
    existing_version_row,
    is_usable,
    version_of,
)
from loragate.adapters.registry.states import IN_ENGINE, AdapterState, move
from loragate.adapters.registry.tables import Adapters, Aliases, Arms, Trials, Versions
from loragate.adapters.registry.unreadable_rows import readable

_AT_REST: Final = frozenset({AdapterState.PUBLISHED, AdapterState.FAILED})


class Transitions:
    """The part of `Registry` that knows states. ``actor`` is who asked, for the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(
        self,
        version: AdapterVersion,
        state: AdapterState,
        actor: str,
        reason: str = "",
        *,
        unless: AdapterState | None = None,
    ) -> AdapterState:
        """Move a version; ``reason`` is kept with the state and in the audit. One that is in the
        state ``unless`` stays as it is.

        Returns the state that it came to: RETIRED where it was to come to rest and had been asked
        to retire. Raises IllegalMove, and VersionNotFound for a version of another database.
        """
        with self._database.changing_states() as session:
            row = session.get(Versions, version.lora_id)
            if row is None:
                raise VersionNotFound(version.tenant, version.name, version.version)
            adapter = session.get_one(Adapters, row.adapter_id)
            if row.state != unless:
                move_version(session, adapter, row, state, actor, reason)
            return state_of(adapter, row)

    def say_not_loaded(
        self, version: AdapterVersion, reason: str, actor: str, *, was_ready: bool = False
    ) -> None:
        """Records that a server cannot load the version now, through no fault of the version,
        which is PUBLISHED with this reason, or stays so.

        What is READY for another server stays as it is; ``was_ready`` says that this server
        had said so.
        """
        with self._database.changing_states() as session:
            row = session.get(Versions, version.lora_id)
            if row is None:
                return
            adapter = session.get_one(Adapters, row.adapter_id)
            if row.state == AdapterState.LOADING or (was_ready and row.state == AdapterState.READY):
                move_version(session, adapter, row, AdapterState.PUBLISHED, actor, reason)
            elif row.state == AdapterState.PUBLISHED and row.reason != reason:
                row.reason = reason
                record_version(session, adapter, row, actor, "version.not_loaded", reason)

    def reset(self, actor: str) -> int:
        """For a server that starts: what a dead one left LOADING, READY or DRAINING is PUBLISHED,
        since nothing is loaded yet. Aliases stay as they are. The number of versions that moved.
        """
        with self._database.changing_states() as session:
            query = select(Versions, Adapters).join(Adapters).where(Versions.state.in_(IN_ENGINE))
            left = session.execute(query.order_by(Versions.id)).all()
            for row, adapter in left:
                move_version(
                    session, adapter, row, AdapterState.PUBLISHED, actor, "the server started"
                )
            return len(left)

    def retire(self, adapter: AdapterName, number: int, actor: str = "cli") -> AdapterVersion:
        """No new request gets the version and its number stays taken; a second time changes
        nothing.

        One that an engine holds keeps its state, is `Snapshot.is_retiring`, and is RETIRED in the
        moment in which it comes to rest. Raises AdapterNotFound, TenantNotFound, VersionNotFound,
        VersionInUse while an alias is to point to it or serves it, and VersionHeld while a rollout
        or an experiment sends requests to it.
        """
        with self._database.changing() as session:
            adapter_row = existing_adapter_row(session, adapter)
            row = existing_version_row(session, adapter_row, adapter, number)
            _require_no_alias(session, adapter, row)
            _require_not_held(session, adapter, row)
            if not is_usable(row):
                return version_of(adapter.tenant, adapter.name, row)
            row.pinned_at = None
            want_merged_no_longer(row)
            if row.state in _AT_REST:
                move_version(session, adapter_row, row, AdapterState.RETIRED, actor)
            else:
                row.retiring = True
                record_version(
                    session, adapter_row, row, actor, "version.retiring", "waits for the engine"
                )
            return version_of(adapter.tenant, adapter.name, row)


def move_version(
    session: Session,
    adapter: Adapters,
    row: Versions,
    wanted: AdapterState,
    actor: str,
    reason: str = "",
) -> None:
    """Move and record it; a version that is to retire goes on to RETIRED when it comes to rest.

    Raises IllegalMove.
    """
    before = state_of(adapter, row)
    row.state = move(before, wanted)
    row.reason = reason
    action = "version.retire" if wanted is AdapterState.RETIRED else "version.state"
    record_version(session, adapter, row, actor, action, reason, from_state=before, to_state=wanted)
    if row.retiring and wanted in _AT_REST:
        move_version(session, adapter, row, AdapterState.RETIRED, actor, reason)


def state_of(adapter: Adapters, row: Versions) -> AdapterState:
    """Raises UnreadableRecord."""
    with readable(f"{adapter.tenant_id}/{adapter.name}@v{row.number}"):
        return AdapterState(row.state)


def _require_no_alias(session: Session, adapter: AdapterName, row: Versions) -> None:
    aliases = session.scalars(
        select(Aliases.name)
        .where(or_(Aliases.desired_id == row.id, Aliases.serving_id == row.id))
        .order_by(Aliases.name)
    ).all()
    if aliases:
        raise VersionInUse(adapter.tenant, adapter.name, f"v{row.number}", tuple(aliases))


def _require_not_held(session: Session, adapter: AdapterName, row: Versions) -> None:
    holder = session.scalars(
        select(Trials)
        .join(Arms, Arms.trial_id == Trials.id)
        .where(Arms.version_id == row.id, Trials.ended_at.is_(None))
    ).first()
    if holder is not None:
        trial = f"{holder.kind} {holder.id}"
        raise VersionHeld(adapter.tenant, adapter.name, f"v{row.number}", trial)
