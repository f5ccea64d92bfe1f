"""Makes what the registry wishes come true: promotions, rollbacks and retirements, one at a time.

An alias is to mean another version: that one is loaded beside the old, checked and warmed by the
check; then the alias moves, in one transaction; then the old version's requests end, and only then
does the engine let go of it. Whatever fails leaves the alias where it was.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loragate.adapters.errors import AliasMovedOn, LoragateError
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry import Registry
from loragate.adapters.snapshot import SnapshotWatcher, Wish
from loragate.adapters.states import AdapterState
from loragate.server.core import Route
from loragate.server.errors import EngineDead
from loragate.server.loading import ACTOR, Loader
from loragate.server.pins import Pins
from loragate.server.residency import Residency

logger = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


class Lifecycle:
    """Follows the registry's snapshot; `running` owns its task."""

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotWatcher,
        residency: Residency,
        loader: Loader,
        pins: Pins,
        changed: asyncio.Event,
    ) -> None:
        """`changed` is set whenever there is a new snapshot."""
        self._registry = registry
        self._snapshots = snapshots
        self._residency = residency
        self._loader = loader
        self._pins = pins
        self._changed = changed
        self._drains: dict[AdapterVersion, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Lifecycle"]:
        """Puts the states of a dead server right, serves what is wished for, then follows."""
        await asyncio.to_thread(self._registry.reset_states, ACTOR)
        await self._snapshots.refresh()
        self._changed.set()
        task = asyncio.create_task(self._follow(), name="lifecycle")
        try:
            yield self
        finally:
            tasks = [task, *self._drains.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await self._loader.let_steps_pass()
            self._changed.clear()
            try:
                await self._reconcile()
            except LoragateError as error:  # the engine is down, or the database: try again
                logger.warning("a change has to wait: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                self._changed.set()

    async def _reconcile(self) -> None:
        await self._pins.keep(self._snapshots.current)
        await self._loader.warm()
        snapshot = self._snapshots.current
        for version in self._residency.resident:
            if snapshot.state(version) is AdapterState.PUBLISHED and version not in self._drains:
                # Another server had the registry while this one was cut off from it. First of all,
                # since what is PUBLISHED cannot be let serve.
                await asyncio.to_thread(self._registry.restore_ready, version, ACTOR)
        for wish in snapshot.open_wishes():
            if snapshot.state(wish.desired) is not AdapterState.FAILED:
                await self._serve(wish)
        snapshot = self._snapshots.current
        for version in self._residency.resident:
            if snapshot.is_retiring(version) and not snapshot.is_meant(version):
                self._start_drain(version)

    async def _serve(self, wish: Wish) -> None:
        version, name = wish.desired, AdapterName(wish.adapter.tenant, wish.adapter.name)
        try:
            async with self._residency.lease(Route(version.tenant, version)):
                await self._loader.let_steps_pass()
                await asyncio.to_thread(
                    self._registry.set_serving, name, wish.alias, version.number, ACTOR
                )
        except EngineDead:
            raise
        except AliasMovedOn:
            return  # somebody wished for another meanwhile, which comes next
        except LoragateError as error:
            logger.warning("%s@%s stays where it is: %s", name, wish.alias, error)
            await self._snapshots.refresh()
            if self._snapshots.current.state(version) is AdapterState.FAILED:
                return
            raise  # no slot came free, say: it comes again
        finally:
            await self._snapshots.refresh()
        logger.info("%s@%s serves %s", name, wish.alias, version.version)
        if wish.serving is not None and not self._is_meant(wish.serving):
            self._start_drain(wish.serving)

    def _is_meant(self, version: AdapterVersion) -> bool:
        snapshot = self._snapshots.current
        return version in snapshot.pinned() or snapshot.is_meant(version)

    def _start_drain(self, version: AdapterVersion) -> None:
        # Beside the rest: long answers of an old version hold no promotion up.
        snapshot = self._snapshots.current
        is_ready = snapshot.state(version) is AdapterState.READY
        # A deleted tenant's versions are in no snapshot, so their state is not known here.
        if version not in self._drains and (is_ready or not snapshot.has_tenant(version.tenant)):
            drain = asyncio.create_task(self._drain(version), name=f"drain {version}")
            self._drains[version] = drain
            drain.add_done_callback(lambda _: self._drains.pop(version))

    async def _drain(self, version: AdapterVersion) -> None:
        """Lets the version's requests end, then takes it out of the engine."""
        try:
            await self._loader.let_steps_pass()
            await self._loader.set_state(version, AdapterState.DRAINING)
            await self._loader.let_steps_pass()
            await self._residency.drain(version)
            await self._loader.let_steps_pass()
            if version in self._residency.resident:  # a pinned request came in the same moment
                await self._loader.set_state(version, AdapterState.READY, "asked for again")
            else:
                self._loader.forget(version)
                await self._loader.set_state(version, AdapterState.PUBLISHED, "drained")
        except LoragateError as error:
            logger.warning("%s could not be drained: %s", version, error)
        else:
            self._changed.set()
