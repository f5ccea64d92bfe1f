"""Makes what the registry targets come true: promotions, rollbacks and retirements.

An alias is to mean another version: that one is loaded beside the old, checked and warmed by the
check; then the alias moves, in the transaction in which the version becomes READY; then the old
version's requests end, and only then is it taken out of the engine. Whatever fails leaves the alias
where it was, and is tried again by itself. Each target goes its own way: one that waits or fails
holds up no other.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf

from loragate.adapters.errors import AliasMovedOn, LoragateError
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import DesiredAlias, Snapshot, SnapshotWatcher
from loragate.adapters.registry.states import AdapterState
from loragate.server.concurrency.retries import Backoff, Retries
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import ACTOR, Route
from loragate.server.errors import EngineDead, MachineFault
from loragate.server.residency.loader import Loader
from loragate.server.residency.pins import Pins
from loragate.server.residency.residency import Residency

logger = logging.getLogger(__name__)
_SOON_SECONDS = 1.0  # for what waits for the engine or the database
_SHORTEST_WAIT_SECONDS = 0.25
_LOOK_AT_ALL_SECONDS = 10.0
_RETRIES = Backoff(first=1.0, most=30.0)
# Each holds a slot while it loads, and requests of others want slots too.
_MOST_LOADING = 4
_MOST_WAITING = 4  # for a slot
_MOST_MOVING = 16  # to a version that is in the engine already
_NOT_HELD = frozenset({AdapterState.PUBLISHED, AdapterState.DRAINING})

AliasKey = tuple[str, str, str]
"""Tenant, adapter and alias."""
_TargetKey = tuple[AliasKey, int]
"""An alias and the lora_id that it is to mean."""


@dataclass(slots=True)
class _Attempt:
    """A target that is being fulfilled. `needs` is what it may have to wait for meanwhile."""

    tenant: str
    needs: str
    task: asyncio.Task[None]


class AliasReconciler:
    """Follows the registry's snapshot; `running` owns its tasks."""

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotWatcher,
        residency: Residency,
        loader: Loader,
        pins: Pins,
        changed: asyncio.Event,
        background: BackgroundTasks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changed` is set whenever there is a new snapshot."""
        self._registry = registry
        self._snapshots = snapshots
        self._residency = residency
        self._loader = loader
        self._pins = pins
        self._changed = changed
        self._background = background
        self._is_cold = asyncio.Event()
        self._to_tell = asyncio.Event()
        self._attempts: dict[_TargetKey, _Attempt] = {}
        self._target_retries: Retries[_TargetKey] = Retries(_RETRIES)
        # What each alias with an open target serves, or has served since the target is open.
        self._replaced: dict[AliasKey, set[AdapterVersion]] = {}
        self._to_drain: set[AdapterVersion] = set()
        self._drains: dict[AdapterVersion, asyncio.Task[None]] = {}
        self._drain_retries: Retries[AdapterVersion] = Retries(_RETRIES)
        self._clock = clock
        self._looked_at = 0.0  # by the clock, at what is in the engine
        self._looked_at_all = -inf  # and at all that was loaded

    @asynccontextmanager
    async def running(self) -> AsyncIterator["AliasReconciler"]:
        """Puts the states of a dead server right, serves what is asked for, then follows."""
        await asyncio.to_thread(self._registry.states.reset, ACTOR)
        await self._snapshots.refresh()
        self._changed.set()
        self._is_cold.set()
        try:
            async with (
                self._background.repeating("probe", self._warm, wait=self._is_cold.wait),
                # Vital: what somebody has rolled back meanwhile goes on answering.
                self._background.repeating(
                    "alias reconciler", self._reconcile, wait=self._wait, is_vital=True
                ),
                self._background.repeating("states and pins", self._tell, wait=self._wait_to_tell),
                self._background.repeating(
                    "unloads", self._residency.take_out_leaving, wait=self._residency.leaving
                ),
            ):
                yield self
        finally:
            tasks = [*self._drains.values(), *(each.task for each in self._attempts.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self) -> None:
        """Returns when there is a new snapshot, or something to be tried again."""
        waits = [self._target_retries.next_seconds, self._drain_retries.next_seconds]
        if self._looked_at_all < self._looked_at:
            waits.append(_LOOK_AT_ALL_SECONDS)
        # What is due and has to wait for the end of something else must not make this spin.
        soonest = max(_SHORTEST_WAIT_SECONDS, min((w for w in waits if w is not None), default=inf))
        with suppress(TimeoutError):
            async with asyncio.timeout(None if soonest == inf else soonest):
                await self._changed.wait()
        await self._loader.yield_to_engine()

    async def _warm(self) -> None:
        """So that no check has to wait for the engine's slow first steps."""
        try:
            await self._loader.warm()
        except EngineDead:
            await asyncio.sleep(_SOON_SECONDS)
            return
        self._is_cold.clear()

    async def _reconcile(self) -> None:
        """Begins what is to be done and can be; waits for none of it, nor for the database."""
        self._changed.clear()
        snapshot = self._snapshots.current
        self._pins.hold(snapshot)
        self._follow_targets(snapshot)
        self._follow_drains(snapshot)
        self._to_tell.set()

    async def _wait_to_tell(self) -> None:
        """Returns with each snapshot; and soon again, for what could not be told when it was."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SOON_SECONDS):
                await self._to_tell.wait()

    async def _tell(self) -> None:
        """Tells the registry what this server knows better. Raises StoreError."""
        self._to_tell.clear()
        await self._loader.say_unsaid()
        await self._pins.keep(self._snapshots.current)
        for version in self._residency.resident:
            # Somebody who does not hold it may have said otherwise, or a drain that was called off.
            is_ours = self._loader.has_passed(version) and version not in self._to_drain
            if is_ours and self._snapshots.current.state(version) in _NOT_HELD:
                await self._loader.set_ready(version, "it is in the engine")

    # ---- targets

    def _follow_targets(self, snapshot: Snapshot) -> None:
        unserved_aliases = {
            _key(target): target
            for target in snapshot.unserved_aliases()
            if snapshot.state(target.desired) is not AdapterState.FAILED
        }
        self._note_replaced(snapshot)
        for key, attempt in self._attempts.items():
            if key not in unserved_aliases and not _is_served(snapshot, key):
                attempt.task.cancel()  # it may be waiting for a slot that others need
        self._target_retries.keep(unserved_aliases)
        for key, target in unserved_aliases.items():
            if key in self._attempts or not self._target_retries.is_due(key):
                continue
            needs = self._needs(target)
            if needs is not None:
                self._target_retries.begin(key)
                task = asyncio.create_task(
                    self._attempt(key, target), name=f"serve {target.desired}"
                )
                self._attempts[key] = _Attempt(target.adapter.tenant, needs, task)

    def _needs(self, target: DesiredAlias) -> str | None:
        """What the target needs first; None where too many need the same, so that it has to
        wait for the end of one of these.
        """
        if self._residency.is_resident(target.desired):
            needs, most, of_a_tenant = "nothing", _MOST_MOVING, _MOST_MOVING
        elif self._residency.may_acquire(target.desired):
            needs, most, of_a_tenant = "load", _MOST_LOADING, 1
        else:
            needs, most, of_a_tenant = "slot", _MOST_WAITING, 1
        tenants = [each.tenant for each in self._attempts.values() if each.needs == needs]
        has_room = len(tenants) < most and tenants.count(target.adapter.tenant) < of_a_tenant
        return needs if has_room else None

    async def _attempt(self, key: _TargetKey, target: DesiredAlias) -> None:
        try:
            await self._try_to_serve(key, target)
            await self._look_again()  # else the target would look open still
        finally:
            del self._attempts[key]
            self._changed.set()  # others may have waited for the end of this one

    async def _try_to_serve(self, key: _TargetKey, target: DesiredAlias) -> None:
        version, name = target.desired, AdapterName(target.adapter.tenant, target.adapter.name)
        try:
            await self._serve(name, key, target)
        except AliasMovedOn:
            pass  # somebody asked for another meanwhile, which comes next
        except EngineDead as error:
            logger.warning("%s@%s waits for the engine: %s", name, target.alias, error)
            self._target_retries.postpone(key, _SOON_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is, this target alone waits
            seconds = self._target_retries.failed(key)
            _log(f"{name}@{target.alias} stays where it is", error, seconds)
        else:
            self._target_retries.forget(key)
            logger.info("%s@%s serves %s", name, target.alias, version.version)

    async def _serve(self, name: AdapterName, key: _TargetKey, target: DesiredAlias) -> None:
        version = target.desired
        self._loader.try_again(version)
        async with self._residency.acquire(Route(version.tenant, version)):
            await self._loader.yield_to_engine()
            await self._look_again()
            if _is_served(self._snapshots.current, key):
                return  # by its load
            # It is refused where the alias is to mean another version by now.
            await asyncio.to_thread(
                self._registry.aliases.set_serving, name, target.alias, version.number, ACTOR
            )

    async def _look_again(self) -> None:
        with suppress(LoragateError):
            await self._snapshots.refresh()

    # ---- drains

    def _note_replaced(self, snapshot: Snapshot) -> None:
        """What an alias no longer serves, once its target has come true, is to leave the engine."""
        still_open = {_key(target)[0]: target for target in snapshot.unserved_aliases()}
        for alias in self._replaced.keys() - still_open.keys():
            self._to_drain |= self._replaced.pop(alias)
        for alias, target in still_open.items():
            if target.serving is not None:
                self._replaced.setdefault(alias, set()).add(target.serving)

    def _follow_drains(self, snapshot: Snapshot) -> None:
        """Beside the rest: long answers of an old version hold no promotion up."""
        self._to_drain |= {v for v in self._residency.resident if snapshot.is_retiring(v)}
        self._looked_at = self._clock()
        if self._looked_at - self._looked_at_all >= _LOOK_AT_ALL_SECONDS:
            # What has been unloaded to make room is READY too, until it is drained; there may be
            # thousands.
            self._to_drain |= {v for v in self._loader.passed if snapshot.is_retiring(v)}
            self._looked_at_all = self._looked_at
        meant = {version for version in self._to_drain if self._is_meant(version)}
        self._to_drain -= meant
        for version in meant & self._drains.keys():
            self._drains[version].cancel()  # it is wanted again, and may serve as it is
        self._drain_retries.keep(self._to_drain)
        for version in self._to_drain - self._drains.keys():
            if self._drain_retries.is_due(version):
                self._drain_retries.begin(version)
                drain = asyncio.create_task(self._drain(version), name=f"drain {version}")
                self._drains[version] = drain

    def _is_meant(self, version: AdapterVersion) -> bool:
        snapshot = self._snapshots.current
        return version in snapshot.pinned() or snapshot.is_meant(version)

    async def _drain(self, version: AdapterVersion) -> None:
        """Lets the version's requests end, then takes it out of the engine."""
        try:
            await self._take_out(version)
        except asyncio.CancelledError:
            if self._is_meant(version):  # else the server ends
                await self._stay(version)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, this version alone waits
            _log(f"{version} could not be drained", error, self._drain_retries.failed(version))
        else:
            self._to_drain.discard(version)
            self._drain_retries.forget(version)
        finally:
            del self._drains[version]
            self._changed.set()

    async def _take_out(self, version: AdapterVersion) -> None:
        await self._loader.yield_to_engine()
        # The change that moved its alias has said so, unless something else ended its time.
        if self._snapshots.current.state(version) is not AdapterState.DRAINING:
            await self._loader.begin_drain(version)
            await self._loader.yield_to_engine()
        async with self._residency.drained(version, lambda: self._is_meant(version)) as is_out:
            if is_out:
                await self._loader.yield_to_engine()
                await self._loader.end_drain(version)
                return
        await self._stay(version)

    async def _stay(self, version: AdapterVersion) -> None:
        """It was asked for again before it had left."""
        with suppress(LoragateError):
            if self._residency.is_resident(version):
                await self._loader.set_ready(version, "asked for again")
            else:
                await self._loader.end_drain(version)


def _log(what: str, error: Exception, seconds: float) -> None:
    if isinstance(error, MachineFault):  # whoever raised it has logged it
        logger.info("%s, next try in %.0f s at the soonest: %s", what, seconds, error.reason)
        return
    is_foreseen = isinstance(error, LoragateError)
    logger.warning(
        "%s, next try in %.0f s at the soonest: %s",
        *(what, seconds, error),
        exc_info=None if is_foreseen else error,
    )


def _key(target: DesiredAlias) -> _TargetKey:
    return (target.adapter.tenant, target.adapter.name, target.alias), target.desired.lora_id


def _is_served(snapshot: Snapshot, key: _TargetKey) -> bool:
    """Whether the alias serves the version: then its attempt is about to end by itself."""
    (tenant, name, alias), lora_id = key
    listing = snapshot.adapter(tenant, name)
    versions = None if listing is None else listing.aliases.get(alias)
    return (
        versions is not None
        and versions.serving is not None
        and versions.serving.lora_id == lora_id
    )
