"""Which merged models are to be served, by the registry, and what became of it."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from loragate.adapters.errors import MergedInUse, VersionNotFound
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.audit import record_version
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.merged_states import AT_REST, MergedState
from loragate.adapters.registry.rows import (
    existing_adapter_row,
    existing_version_row,
    merged_status,
    usable_version_row,
    version_of,
)
from loragate.adapters.registry.tables import Adapters, Aliases, Arms, Trials, Versions


class MergedServing:
    """The part of `Registry` that knows which merged models serve. ``actor`` is who asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def serve(self, adapter: AdapterName, number: int, actor: str = "cli") -> AdapterVersion:
        """Ask for the version's merged model to be served, until `stop_merged` or its retirement.

        A server starts an engine for it where there is memory. One that was refused or has failed
        is tried again. Raises AdapterNotFound, TenantNotFound, VersionNotFound and VersionRetired.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = usable_version_row(session, row, adapter, number)
            status = merged_status(version)
            if status is None or not status.is_wanted or status.state in AT_REST:
                version.merged_since = version.merged_since or wall_clock()
                version.merged_state = MergedState.WAITING
                version.merged_reason = ""
                record_version(session, row, version, actor, "version.serve_merged")
            return version_of(adapter.tenant, adapter.name, version)

    def stop(self, adapter: AdapterName, number: int, actor: str = "cli") -> AdapterVersion:
        """Serve the version's merged model no longer; a second time changes nothing.

        Raises AdapterNotFound, TenantNotFound, VersionNotFound, and MergedInUse while an alias, a
        rollout or an experiment sends requests to it.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = existing_version_row(session, row, adapter, number)
            _require_unused(session, adapter, version)
            if version.merged_since is not None:
                want_merged_no_longer(version)
                record_version(session, row, version, actor, "version.stop_merged")
            return version_of(adapter.tenant, adapter.name, version)

    def set_state(
        self, version: AdapterVersion, state: MergedState | None, actor: str, reason: str = ""
    ) -> None:
        """Records how far a server is with the version's merged model; None where it has ended."""
        with self._database.changing_states() as session:
            row = session.get(Versions, version.lora_id)
            if row is None:
                raise VersionNotFound(version.tenant, version.name, version.version)
            if row.merged_since is not None and state is None:
                state = MergedState.WAITING  # asked for again meanwhile
            if (row.merged_state, row.merged_reason) == (state or "", reason):
                return
            row.merged_state, row.merged_reason = state or "", reason
            adapter = session.get_one(Adapters, row.adapter_id)
            words = ": ".join(filter(None, (state or "stopped", reason)))
            record_version(session, adapter, row, actor, "version.merged_state", words)

    def reset(self, actor: str) -> int:
        """For a server that starts: nothing is served merged yet, and all that is wanted is tried.

        Returns the number of versions that this concerns.
        """
        with self._database.changing_states() as session:
            query = select(Versions, Adapters).join(Adapters).where(Versions.merged_state != "")
            left = session.execute(query.order_by(Versions.id)).all()
            for row, adapter in left:
                row.merged_state = "" if row.merged_since is None else MergedState.WAITING
                row.merged_reason = ""
                record_version(
                    session, adapter, row, actor, "version.merged_state", "the server started"
                )
            return len(left)


def want_merged_no_longer(version: Versions) -> None:
    version.merged_since = None
    has_engine = version.merged_state not in ("", *AT_REST)
    version.merged_state = MergedState.STOPPING if has_engine else ""
    version.merged_reason = ""


def _require_unused(session: Session, adapter: AdapterName, version: Versions) -> None:
    to_here = or_(
        (Aliases.desired_id == version.id) & (Aliases.desired_mode == "merged"),
        (Aliases.serving_id == version.id) & (Aliases.serving_mode == "merged"),
    )
    users = [
        f"alias {name}"
        for name in session.scalars(select(Aliases.name).where(to_here).order_by(Aliases.name))
    ]
    trials = (
        select(Trials)
        .join(Arms, Arms.trial_id == Trials.id)
        .where(Arms.version_id == version.id, Arms.mode == "merged", Trials.ended_at.is_(None))
    )
    users += [f"{trial.kind} {trial.id}" for trial in session.scalars(trials)]
    if users:
        raise MergedInUse(adapter.tenant, adapter.name, f"v{version.number}", tuple(users))
