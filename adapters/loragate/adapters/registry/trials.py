"""The registry's rollouts and experiments: begun, moved from state to state, ended."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from loragate.adapters.errors import (
    AliasMovedOn,
    TrialMovedOn,
    TrialNotFound,
    TrialUnderWay,
)
from loragate.adapters.names import CHAMPION, AdapterName
from loragate.adapters.registry.aliases import SET_ALIAS, set_desired
from loragate.adapters.registry.audit import record
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.rows import (
    existing_adapter_row,
    existing_alias_row,
    usable_version_row,
    version_of,
)
from loragate.adapters.registry.tables import Adapters, Arms, Trials, Versions
from loragate.adapters.registry.trial_records import (
    Arm,
    ArmMode,
    NewArm,
    Trial,
    TrialKind,
    TrialStatus,
)

_ROWS_AT_ONCE: Final = 1000  # a statement takes only so many values


class TrialLedger:
    """The part of `Registry` that knows rollouts and experiments. ``actor`` is who asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self,
        kind: TrialKind,
        adapter: AdapterName,
        arms: Sequence[NewArm],
        plan: str,
        state: str,
        actor: str = "cli",
    ) -> Trial:
        """Raises AdapterNotFound, TenantNotFound, VersionNotFound, VersionRetired, and
        TrialUnderWay where the adapter has a rollout or an experiment already.
        """
        with self._database.changing() as session:
            row = existing_adapter_row(session, adapter)
            running = session.scalars(
                select(Trials).where(Trials.adapter_id == row.id, Trials.ended_at.is_(None))
            ).one_or_none()
            if running is not None:
                raise TrialUnderWay(adapter.tenant, adapter.name, _name(running))
            now = wall_clock()
            trial = Trials(
                kind=kind,
                adapter_id=row.id,
                salt=secrets.token_hex(8),
                plan=plan,
                state=state,
                step=0,
                watched_seconds=0.0,
                reason="",
                created_at=now,
                updated_at=now,
            )
            session.add(trial)
            session.flush()
            session.add_all(
                _new_arm(session, row, adapter, trial, position, arm)
                for position, arm in enumerate(arms)
            )
            _record(session, row, trial, actor, "start")
            return _read(session, trial)

    def get(self, trial_id: int) -> Trial:
        """Raises TrialNotFound."""
        with self._database.reading() as session:
            return _read(session, _existing(session, trial_id))

    def list(
        self,
        tenant: str | None = None,
        kind: TrialKind | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> tuple[Trial, ...]:
        """Newest first, from after the one with this id."""
        query = select(Trials).join(Adapters).order_by(Trials.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(Adapters.tenant_id == tenant)
        if kind is not None:
            query = query.where(Trials.kind == kind)
        if after is not None:
            query = query.where(Trials.id < after)
        with self._database.reading() as session:
            return _read_all(session, session.scalars(query).all())

    def newest(self, adapter: AdapterName, kind: TrialKind | None = None) -> Trial | None:
        """None where the adapter, if it exists, never had one."""
        query = (
            select(Trials)
            .join(Adapters)
            .where(Adapters.tenant_id == adapter.tenant, Adapters.name == adapter.name)
            .order_by(Trials.id.desc())
            .limit(1)
        )
        if kind is not None:
            query = query.where(Trials.kind == kind)
        with self._database.reading() as session:
            row = session.scalars(query).one_or_none()
            return None if row is None else _read(session, row)

    def under_way(self) -> tuple[Trial, ...]:
        """All that a server has to carry on; it reads them again when the revision has grown."""
        query = select(Trials).where(Trials.ended_at.is_(None)).order_by(Trials.id)
        with self._database.reading() as session:
            return _read_all(session, session.scalars(query).all())

    def note_watched(self, trial: Trial, seconds: float) -> None:
        """Keep the time spent at the present step. Not a change: it is not audited, and does
        nothing if the trial has moved on.
        """
        with self._database.writing() as session:
            session.execute(
                update(Trials)
                .where(
                    Trials.id == trial.id,
                    Trials.state == trial.status.state,
                    Trials.step == trial.status.step,
                )
                .values(watched_seconds=seconds, updated_at=wall_clock())
            )

    def move(
        self,
        trial: Trial,
        status: TrialStatus,
        actor: str,
        *,
        is_over: bool = False,
        promote: str | None = None,
    ) -> Trial:
        """From where ``trial`` was read to another status; in the same transaction the arm
        ``promote`` becomes what the champion desires.

        Raises TrialMovedOn where somebody else moved it first, so that a pause is not overtaken by
        a look that began before it; and, with ``promote``, AliasMovedOn where the champion is no
        longer the one that the trial began with, and VersionRetired.
        """
        with self._database.changing() as session:
            row = _existing(session, trial.id)
            before = trial.status
            if (row.state, row.step) != (before.state, before.step) or row.ended_at is not None:
                raise TrialMovedOn(str(trial), _where(before), _where(_status(row)))
            _move(row, status, is_over)
            adapter_row = session.get_one(Adapters, row.adapter_id)
            _record(session, adapter_row, row, actor, status.state.lower())
            if promote is not None:
                _promote(session, adapter_row, trial, promote, actor)
            return _read(session, row)


def end_trials_of_tenant(session: Session, tenant: str, actor: str) -> None:
    """Within the transaction that deletes it."""
    query = select(Trials, Adapters).join(Adapters).where(Trials.ended_at.is_(None))
    for row, adapter_row in session.execute(query.where(Adapters.tenant_id == tenant)):
        _move(
            row, TrialStatus("ABORTED", row.step, row.watched_seconds, "its tenant is gone"), True
        )
        _record(session, adapter_row, row, actor, "aborted")


def _new_arm(
    session: Session,
    row: Adapters,
    adapter: AdapterName,
    trial: Trials,
    position: int,
    arm: NewArm,
) -> Arms:
    version_id = None
    if arm.number is not None:
        version_id = usable_version_row(session, row, adapter, arm.number).id
    return Arms(
        trial_id=trial.id,
        position=position,
        name=arm.name,
        version_id=version_id,
        mode=arm.mode,
        share=arm.share,
    )


def _promote(session: Session, adapter_row: Adapters, trial: Trial, arm: str, actor: str) -> None:
    adapter, winner, before = trial.adapter, trial.arm(arm).version, trial.arm(CHAMPION).version
    if winner is None:
        raise ValueError(f"arm {arm!r} is the base model, which cannot be a champion")
    desired_id = existing_alias_row(session, adapter_row, adapter, CHAMPION).desired_id
    if desired_id not in (winner.lora_id, None if before is None else before.lora_id):
        desired = session.get_one(Versions, desired_id)
        raise AliasMovedOn(
            adapter.tenant, adapter.name, CHAMPION, winner.version, f"v{desired.number}"
        )
    version = usable_version_row(session, adapter_row, adapter, winner.number)
    mode = trial.arm(arm).mode
    set_desired(
        session, adapter_row, adapter, CHAMPION, version, actor, SET_ALIAS, str(trial), mode
    )


def _move(row: Trials, status: TrialStatus, is_over: bool) -> None:
    row.state, row.step = status.state, status.step
    row.watched_seconds, row.reason = status.watched_seconds, status.reason
    row.updated_at = wall_clock()
    if is_over:
        row.ended_at = row.updated_at


def _record(session: Session, adapter_row: Adapters, row: Trials, actor: str, action: str) -> None:
    # The adapter itself is untouched: no snapshot shows its trials.
    subject = f"{adapter_row.tenant_id}/{adapter_row.name}"
    reason = f"{_name(row)}, step {row.step}: {row.reason}" if row.reason else _name(row)
    record(session, actor, f"{row.kind}.{action}", subject, reason=reason)


def _existing(session: Session, trial_id: int) -> Trials:
    row = session.get(Trials, trial_id)
    if row is None:
        raise TrialNotFound(trial_id)
    return row


def _read(session: Session, row: Trials) -> Trial:
    [trial] = _read_all(session, [row])
    return trial


def _read_all(session: Session, rows: Sequence[Trials]) -> tuple[Trial, ...]:
    """In a few queries for each thousand."""
    pieces = (rows[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE))
    return tuple(trial for piece in pieces for trial in _read_some(session, piece))


def _read_some(session: Session, rows: Sequence[Trials]) -> tuple[Trial, ...]:
    adapters = {
        adapter.id: AdapterName(adapter.tenant_id, adapter.name)
        for adapter in session.scalars(
            select(Adapters).where(Adapters.id.in_({row.adapter_id for row in rows}))
        )
    }
    arms: dict[int, list[Arm]] = {row.id: [] for row in rows}
    found = session.execute(
        select(Arms, Versions)
        .outerjoin(Versions, Versions.id == Arms.version_id)
        .where(Arms.trial_id.in_(list(arms)))
        .order_by(Arms.position)
    )
    owners = {row.id: adapters[row.adapter_id] for row in rows}
    for arm, version in found:
        owner = owners[arm.trial_id]
        arms[arm.trial_id].append(
            Arm(
                arm.id,
                arm.name,
                None if version is None else version_of(owner.tenant, owner.name, version),
                cast(ArmMode, arm.mode),
                arm.share,
            )
        )
    return tuple(
        Trial(
            row.id,
            cast(TrialKind, row.kind),
            owners[row.id],
            row.salt,
            row.plan,
            tuple(arms[row.id]),
            _status(row),
            row.created_at,
            row.updated_at,
            row.ended_at,
        )
        for row in rows
    )


def _status(row: Trials) -> TrialStatus:
    return TrialStatus(row.state, row.step, row.watched_seconds, row.reason)


def _where(status: TrialStatus) -> str:
    return f"{status.state} at step {status.step}"


def _name(row: Trials) -> str:
    return f"{row.kind} {row.id}"
