"""Which adapter versions are in the engine, and who holds them there.

The engine has `max_loras` slots and evicts by itself, even what a running request needs, and then
reads the adapter's directory again inside a forward step. So it is never given the occasion: at
most `max_loras` distinct versions are leased at once, which the fair queue sees to, and what is
loaded beyond the engine's CPU tier is unloaded here first, least recently used, never what is
leased or pinned.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Protocol

from loragate.adapters.names import AdapterVersion
from loragate.server.core import Route
from loragate.server.engine import LoadedAdapter
from loragate.server.fair_queue import FairQueue


class AdapterLoader(Protocol):
    """What puts versions into the engine and takes them out; see `loading.Loader`."""

    async def load(self, version: AdapterVersion) -> LoadedAdapter: ...
    async def unload(self, adapter: LoadedAdapter) -> None: ...


class Residency:
    """Leases adapter versions to requests, loading each on first use, once, one at a time."""

    def __init__(self, loader: AdapterLoader, queue: FairQueue, *, max_resident: int) -> None:
        """`max_resident` versions are in the engine altogether; `queue` gives out its slots."""
        self._loader = loader
        self._queue = queue
        self._max_resident = max_resident
        # By lora_id, least recently used first.
        self._resident: OrderedDict[int, LoadedAdapter] = OrderedDict()
        self._pinned: frozenset[int] = frozenset()  # lora ids
        self._loads: dict[int, asyncio.Task[LoadedAdapter]] = {}
        self._one_load = asyncio.Lock()

    @property
    def resident(self) -> tuple[AdapterVersion, ...]:
        """Least recently used first."""
        return tuple(adapter.version for adapter in self._resident.values())

    def pin(self, versions: Collection[AdapterVersion]) -> None:
        """From now on these are not unloaded to make room for others, and only these.

        There must be fewer than `max_resident`, by as many as there are slots.
        """
        self._pinned = frozenset(version.lora_id for version in versions)

    @asynccontextmanager
    async def lease(self, route: Route) -> AsyncIterator[LoadedAdapter | None]:
        """Holds the route's version in the engine; None for the base model and merged models.

        Waits for a slot where every slot is held. Raises AdapterUnavailable where none came free
        in time, or where the engine refuses the adapter.
        """
        version = route.version
        if version is None or not route.needs_slot:
            yield None
            return
        await self._queue.claim(version)  # at once where the request's turn brought the slot
        try:
            adapter = await self._make_resident(version)
            try:
                yield adapter
            finally:
                if self._resident.get(version.lora_id) is adapter:  # else the engine has restarted
                    self._resident.move_to_end(version.lora_id)
        finally:
            self._queue.release(version)

    async def load(self, version: AdapterVersion) -> None:
        """Sees to it that the version is in the engine now. Raises as `lease` does."""
        async with self.lease(Route(version.tenant, version)):
            pass

    @asynccontextmanager
    async def borrow(self, version: AdapterVersion) -> AsyncIterator[LoadedAdapter | None]:
        """As `lease`, of what is in the engine, if that keeps nobody waiting; else None."""
        adapter = self._resident.get(version.lora_id)
        if adapter is None or not self._queue.try_claim(version):
            yield None
            return
        try:
            yield adapter
        finally:
            self._queue.release(version)

    async def prefetch(self, version: AdapterVersion) -> None:
        """Loads the version as what was used longest ago, when nobody waits for the slot that it
        takes, and if no other has to leave; for a pinned one others do. Raises as `lease` does.
        """
        while not self._queue.try_claim(version):
            await self._queue.slot_freed()
        try:
            is_wanted = version.lora_id in self._pinned or self._has_room
            if is_wanted and version.lora_id not in self._resident:
                await self._make_resident(version)
                if version.lora_id in self._resident:  # else the engine has died since
                    self._resident.move_to_end(version.lora_id, last=False)
        finally:
            self._queue.release(version)

    def forget_all(self) -> tuple[AdapterVersion, ...]:
        """The engine has lost all it held: what is asked for from now on is loaded again.

        Leases that are still held end as ever; their requests find out from the engine. What was
        held: what is pinned first, then what is leased, then last use first.
        """

        def claims(version: AdapterVersion) -> tuple[bool, bool]:
            lora_id = version.lora_id
            return lora_id not in self._pinned, not self._queue.is_claimed(lora_id)

        latest = reversed(self.resident)
        held = sorted(latest, key=claims)
        self._resident.clear()
        return tuple(held)

    async def drain(self, version: AdapterVersion) -> None:
        """Waits until no request holds the version, then takes it out of the engine.

        It stays where it was asked for again while a load was waited for.
        """
        while self._queue.is_claimed(version.lora_id):
            await self._queue.slot_freed()
        async with self._one_load:
            if self._queue.is_claimed(version.lora_id):
                return
            adapter = self._resident.pop(version.lora_id, None)
            if adapter is not None:
                await self._loader.unload(adapter)

    async def close(self) -> None:
        """Ends loads under way, so that none is left without an owner; the engine ends next."""
        loads = tuple(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    @property
    def _has_room(self) -> bool:
        return len(self._resident) + len(self._loads) < self._max_resident

    async def _make_resident(self, version: AdapterVersion) -> LoadedAdapter:
        if (adapter := self._resident.get(version.lora_id)) is not None:
            return adapter
        load = self._loads.get(version.lora_id)
        if load is None:
            load = asyncio.create_task(self._load(version), name=f"load {version}")
            self._loads[version.lora_id] = load
            # The load claims a slot itself: whoever asked for it may have left before it is done.
            self._queue.retain(version)
            load.add_done_callback(lambda _: self._end_load(version))
        # A client that leaves must not stop a load that others wait for, nor leave the engine with
        # an adapter that nobody knows of.
        return await asyncio.shield(load)

    def _end_load(self, version: AdapterVersion) -> None:
        del self._loads[version.lora_id]
        self._queue.release(version)

    async def _load(self, version: AdapterVersion) -> LoadedAdapter:
        async with self._one_load:
            await self._make_room()
            adapter = await self._loader.load(version)
            self._resident[version.lora_id] = adapter
            return adapter

    async def _make_room(self) -> None:
        while len(self._resident) >= self._max_resident:
            idle = next((i for i in self._resident if self._may_leave(i)), None)
            if idle is None:
                return  # cannot be: there is room for all pins and all slots, and this has a slot
            await self._loader.unload(self._resident.pop(idle))

    def _may_leave(self, lora_id: int) -> bool:
        return lora_id not in self._pinned and not self._queue.is_claimed(lora_id)
