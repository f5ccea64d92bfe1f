"""The registry's aliases: where each is to point, and which version serves by it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from loragate.adapters.errors import (
    AliasMovedOn,
    NothingToRollBack,
    NotServedMerged,
    VersionNotFound,
    VersionNotReady,
)
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion, parse_alias
from loragate.adapters.registry.audit import record
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.merged_states import Mode
from loragate.adapters.registry.rows import (
    existing_adapter_row,
    existing_alias_row,
    existing_version_row,
    is_usable,
    usable_version_row,
    version_of,
    version_row,
)
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.registry.tables import Adapters, Aliases, Audit, Tenants, Versions
from loragate.adapters.registry.transitions import move_version, state_of

ALIAS_ACTIONS: Final = "alias."
"""How those of the audit rows begin that are an alias's history; `rollback` reads all of it."""
SET_ALIAS: Final = "alias.set"
_SERVED: Final = "alias.serve"
_DELETE: Final = "alias.delete"
_ROLLBACK: Final = "alias.rollback"

_VERSIONS: Final = (
    select(Versions, Adapters, Tenants.deleted_at)
    .join(Adapters, Adapters.id == Versions.adapter_id)
    .join(Tenants, Tenants.id == Adapters.tenant_id)
)
_ALIASES: Final = select(Aliases).order_by(Aliases.name)


class Aliasing:
    """The part of `Registry` that knows aliases. ``actor`` is who asked, for the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(
        self,
        adapter: AdapterName,
        alias: str,
        number: int,
        actor: str = "cli",
        reason: str = "",
        mode: Mode = "unmerged",
    ) -> AdapterVersion:
        """Say where an alias, new or not, is to point; ``champion`` is what serves by plain name.

        What serves by it now goes on until a server has loaded and checked the version, and calls
        `set_serving`. A FAILED version becomes PUBLISHED, to be tried again. With the mode
        ``merged`` its merged model answers, and the version itself whenever that cannot. Raises
        InvalidName, AdapterNotFound, TenantNotFound, VersionNotFound, VersionRetired, and
        NotServedMerged where `serve_merged` has not asked for the merged model.
        """
        parse_alias(alias)
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            version = usable_version_row(session, row, adapter, number)
            if mode == "merged" and version.merged_since is None:
                raise NotServedMerged(adapter.tenant, adapter.name, f"v{number}")
            set_desired(session, row, adapter, alias, version, actor, SET_ALIAS, reason, mode)
            return version_of(adapter.tenant, adapter.name, version)

    def set_serving(
        self, adapter: AdapterName, alias: str, number: int, actor: str, reason: str = ""
    ) -> AdapterVersion:
        """From now on requests by the alias go to this version.

        Raises VersionNotReady unless it is READY, and AliasMovedOn if the alias is to point
        elsewhere by now, so that a rollback cannot be overtaken by what it rolled back; further
        AdapterNotFound, TenantNotFound, AliasNotFound and VersionNotFound.
        """
        with self._database.changing_states() as session:
            row = existing_adapter_row(session, adapter)
            found = existing_alias_row(session, row, adapter, alias)
            version = existing_version_row(session, row, adapter, number)
            _require_ready(session, adapter, found, version)
            if found.serving_id != version.id:
                _serve(session, row, found, version, actor, reason)
            return version_of(adapter.tenant, adapter.name, version)

    def set_ready(self, version: AdapterVersion, actor: str, reason: str = "") -> AdapterState:
        """The version is in the engine and checked: READY. From now on requests go to it by every
        alias that is to mean it, and what one of these has served is DRAINING, where no other alias
        and no pin wants it in the engine. ``reason`` is the state's.

        Returns the state that it came to, RETIRED as in `Transitions.set`; raises IllegalMove and
        VersionNotFound.
        """
        # One change of three kinds, not three: between the end of the check and the first request
        # by the alias nothing happens outside of the registry, so nothing has to be durable before
        # something else. LOADING has to be before the engine reads files, which a collection would
        # take else; and what is DRAINING is PUBLISHED only when the engine has let go of it.
        # All is read first and written together at the end, which takes two thirds of the time.
        with self._database.changing_states() as session, session.no_autoflush:
            found = session.execute(_VERSIONS.where(Versions.id == version.lora_id)).one_or_none()
            if found is None:
                raise VersionNotFound(version.tenant, version.name, version.version)
            row, adapter, deleted_at = found
            of_adapter = _ALIASES.where(Aliases.adapter_id == adapter.id)
            aliases = session.scalars(of_adapter).all() if deleted_at is None else ()
            moving = [a for a in aliases if a.desired_id == row.id and a.serving_id != row.id]
            replaced = {alias.serving_id for alias in moving if alias.serving_id is not None}
            move_version(session, adapter, row, AdapterState.READY, actor, reason)
            for alias in moving:
                _serve(session, adapter, alias, row, actor, "")
            meant = {id_ for alias in aliases for id_ in (alias.desired_id, alias.serving_id)}
            for version_id in sorted(replaced - meant):
                old = session.get_one(Versions, version_id)
                if old.state == AdapterState.READY and old.pinned_at is None:
                    move_version(session, adapter, old, AdapterState.DRAINING, actor)
            return state_of(adapter, row)

    def rollback(self, adapter: AdapterName, actor: str = "cli") -> AdapterVersion:
        """Let the champion point back to the version that served before; again goes further back,
        never forward.

        While nothing ever served by it, what it was to mean earlier counts. Versions that failed or
        were retired since are passed over. Raises AdapterNotFound, TenantNotFound, AliasNotFound
        (no champion) and NothingToRollBack.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            current = existing_alias_row(session, row, adapter, CHAMPION)
            now = session.get_one(Versions, current.desired_id)
            for number in _earlier_champions(session, adapter):
                version = version_row(session, row, number)
                if version is not None and version is not now and _can_return(version):
                    set_desired(session, row, adapter, CHAMPION, version, actor, _ROLLBACK, "")
                    return version_of(adapter.tenant, adapter.name, version)
            raise NothingToRollBack(adapter.tenant, adapter.name, f"v{now.number}")

    def delete(self, adapter: AdapterName, alias: str, actor: str = "cli") -> None:
        """Raises AdapterNotFound, TenantNotFound and AliasNotFound."""
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            found = existing_alias_row(session, row, adapter, alias)
            version = session.get_one(Versions, found.desired_id)
            session.delete(found)
            record(
                session,
                actor,
                _DELETE,
                f"{adapter}@{alias}",
                touched=[row],
                from_version=version.number,
                digest=version.digest,
            )


def set_desired(
    session: Session,
    row: Adapters,
    adapter: AdapterName,
    alias: str,
    version: Versions,
    actor: str,
    action: str,
    reason: str,
    mode: Mode = "unmerged",
) -> None:
    """Let the alias mean this version and record it, unless it does already."""
    if version.state == AdapterState.FAILED:
        move_version(session, row, version, AdapterState.PUBLISHED, actor, "to be tried again")
    before: tuple[int, str] | None = None
    found = session.get(Aliases, (row.id, alias))
    if found is None:
        found = Aliases(adapter_id=row.id, name=alias)
        session.add(found)
    else:
        before = found.desired_id, found.desired_mode
    if before == (version.id, mode):
        return
    found.desired_id, found.desired_mode = version.id, mode
    if found.serving_id == version.id:
        found.serving_mode = mode  # nothing has to be loaded for it
    found.updated_at = wall_clock()
    record(
        session,
        actor,
        action,
        f"{adapter}@{alias}",
        touched=[row],
        from_version=_number(session, before and before[0]),
        to_version=version.number,
        digest=version.digest,
        reason=": ".join(filter(None, ("merged" if mode == "merged" else "", reason))),
    )


def _serve(
    session: Session, row: Adapters, alias: Aliases, version: Versions, actor: str, reason: str
) -> None:
    before = alias.serving_id
    alias.serving_id = version.id
    alias.serving_mode = alias.desired_mode
    alias.updated_at = wall_clock()
    record(
        session,
        actor,
        _SERVED,
        f"{row.tenant_id}/{row.name}@{alias.name}",
        touched=[row],
        from_version=_number(session, before),
        to_version=version.number,
        digest=version.digest,
        reason=reason,
    )


def _require_ready(
    session: Session, adapter: AdapterName, alias: Aliases, version: Versions
) -> None:
    named = adapter.tenant, adapter.name
    if alias.desired_id != version.id:
        desired = session.get_one(Versions, alias.desired_id)
        raise AliasMovedOn(*named, alias.name, f"v{version.number}", f"v{desired.number}")
    if version.state != AdapterState.READY:
        raise VersionNotReady(*named, f"v{version.number}", version.state)


def _number(session: Session, version_id: int | None) -> int | None:
    return None if version_id is None else session.get_one(Versions, version_id).number


def _can_return(version: Versions) -> bool:
    return is_usable(version) and version.state != AdapterState.FAILED


def _earlier_champions(session: Session, adapter: AdapterName) -> list[int]:
    """What the champion was to be before, latest first, without what was rolled back.

    Those that served come first; the others count only where none of those can be had again.
    """
    rows = session.scalars(
        select(Audit).where(Audit.subject == f"{adapter}@{CHAMPION}").order_by(Audit.id)
    )
    numbers: list[int] = []
    served: set[int] = set()
    for row in rows:
        match row.action, row.to_version:
            case (str(action), int(number)) if action == _SERVED:
                served.add(number)
            case (str(action), int(number)) if action == _ROLLBACK:
                del numbers[_last_index(numbers, number) + 1 :]
            case (_, int(number)):
                numbers.append(number)
            case _:
                numbers.clear()
                served.clear()
    earlier = numbers[-2::-1]
    return [number for number in earlier if number in served] or earlier


def _last_index(numbers: list[int], number: int) -> int:
    return len(numbers) - 1 - numbers[::-1].index(number)
