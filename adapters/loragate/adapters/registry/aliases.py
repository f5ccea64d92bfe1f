"""The registry's aliases: where each is to point, and which version serves by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import or_, select
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
        with self._database.changing_states() as session:
            row = session.get(Versions, version.lora_id)
            if row is None:
                raise VersionNotFound(version.tenant, version.name, version.version)
            adapter = session.get_one(Adapters, row.adapter_id)
            move_version(session, adapter, row, AdapterState.READY, actor, reason)
            replaced: set[int] = set()
            for alias in _unserved(session, row):
                if alias.serving_id is not None:
                    replaced.add(alias.serving_id)
                _serve(session, adapter, alias, row, actor, "")
            for version_id in sorted(replaced):
                _let_drain(session, adapter, session.get_one(Versions, version_id), actor)
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


def _unserved(session: Session, version: Versions) -> Sequence[Aliases]:
    """The aliases that are to mean the version and do not yet; none of a deleted tenant."""
    return session.scalars(
        select(Aliases)
        .join(Adapters, Adapters.id == Aliases.adapter_id)
        .join(Tenants, Tenants.id == Adapters.tenant_id)
        .where(
            Aliases.adapter_id == version.adapter_id,
            Aliases.desired_id == version.id,
            or_(Aliases.serving_id.is_(None), Aliases.serving_id != version.id),
            Tenants.deleted_at.is_(None),
        )
        .order_by(Aliases.name)
    ).all()


def _let_drain(session: Session, adapter: Adapters, version: Versions, actor: str) -> None:
    """What aliases mean, or are to, and what is pinned stays as it is."""
    meant = select(Aliases.name).where(
        Aliases.adapter_id == adapter.id,
        or_(Aliases.desired_id == version.id, Aliases.serving_id == version.id),
    )
    is_wanted = version.pinned_at is not None or session.scalars(meant).first() is not None
    if version.state == AdapterState.READY and not is_wanted:
        move_version(session, adapter, version, AdapterState.DRAINING, actor)


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
