"""Which adapter versions are in the engine, and who holds them there.

The engine has `max_loras` slots and evicts by itself, even what a running request needs, and then
reads the adapter's directory again inside a forward step. So it is never given the occasion: at
most `max_loras` distinct versions are acquired at once, which the fair queue sees to, and what is
loaded beyond the engine's CPU tier is unloaded here first, least recently used, never what is
acquired or pinned.

What the engine may hold is always in one of three states here: resident, to be acquired; on its
way in, under the one lock; or leaving, which nobody acquires and which is taken out until that
succeeds.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Protocol

from loragate.adapters.names import AdapterVersion
from loragate.server.admission.fair_queue import FairQueue
from loragate.server.core import Route
from loragate.server.engine.protocol import LoadedAdapter, Placing
from loragate.server.errors import EngineDead, MachineFault

logger = logging.getLogger(__name__)


class AdapterLoader(Protocol):
    """What puts versions into the engine and takes them out; see `loader.Loader`."""

    async def load(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        """Gets the version ready, then enters `placing` and puts it into the engine there."""
        ...

    async def unload(self, adapter: LoadedAdapter) -> None: ...


class Residency:
    """Holds adapter versions in the engine for requests, loading each on first use, once.

    Versions are made ready beside each other and enter the engine one at a time.
    """

    def __init__(self, loader: AdapterLoader, queue: FairQueue, *, max_resident: int) -> None:
        """`max_resident` versions are in the engine altogether; `queue` gives out its slots."""
        self._loader = loader
        self._queue = queue
        self._max_resident = max_resident
        # By lora_id, least recently used first.
        self._resident: OrderedDict[int, LoadedAdapter] = OrderedDict()
        self._leaving: dict[int, LoadedAdapter] = {}  # by lora_id
        self._kept_out: dict[int, asyncio.Event] = {}  # by lora_id; set when it may come in again
        self._pinned: frozenset[int] = frozenset()  # lora ids
        self._loads: dict[int, asyncio.Task[LoadedAdapter]] = {}
        self._one_at_a_time = asyncio.Lock()  # in the engine
        self._generation = 0  # of the engine: what was begun in an older one is lost
        self._has_leaving = asyncio.Event()

    @property
    def resident(self) -> tuple[AdapterVersion, ...]:
        """Least recently used first."""
        return tuple(adapter.version for adapter in self._resident.values())

    def is_resident(self, version: AdapterVersion) -> bool:
        return version.lora_id in self._resident

    def is_pinned(self, version: AdapterVersion) -> bool:
        return version.lora_id in self._pinned

    def may_acquire(self, version: AdapterVersion) -> bool:
        """Whether `acquire` would get its slot at once, and without keeping anybody waiting.

        Of this moment: it says nothing about what is after an `await`.
        """
        return self._queue.may_acquire_slot(version)

    def pin(self, versions: Collection[AdapterVersion]) -> None:
        """From now on these are not unloaded to make room for others, and only these.

        There must be fewer than `max_resident`, by as many as there are slots.
        """
        self._pinned = frozenset(version.lora_id for version in versions)

    @asynccontextmanager
    async def acquire(self, route: Route) -> AsyncIterator[LoadedAdapter | None]:
        """Holds the route's version in the engine; None for the base model and merged models.

        Waits for a slot where every slot is held. Raises AdapterUnavailable where none came free
        in time, or where the engine refuses the adapter; MachineFault where it cannot be loaded
        now; and EngineDead.
        """
        version = route.version
        if version is None or not route.needs_slot:
            yield None
            return
        await self._queue.acquire_slot(version)  # at once where the request's grant has it
        try:
            adapter = await self._make_resident(version)
            try:
                yield adapter
            finally:
                if self._resident.get(version.lora_id) is adapter:  # else the engine has restarted
                    self._resident.move_to_end(version.lora_id)
        finally:
            self._queue.release_slot(version)

    async def load(self, version: AdapterVersion) -> None:
        """Loads the version unless it is in the engine. Raises as `acquire` does."""
        async with self.acquire(Route(version.tenant, version)):
            pass

    @asynccontextmanager
    async def try_acquire(self, version: AdapterVersion) -> AsyncIterator[LoadedAdapter | None]:
        """As `acquire`, of what is in the engine, if that keeps nobody waiting; else None."""
        adapter = self._resident.get(version.lora_id)
        is_ready = adapter is not None and version.lora_id not in self._loads
        if not is_ready or not self._queue.try_acquire_slot(version):
            yield None
            return
        try:
            yield adapter
        finally:
            self._queue.release_slot(version)

    async def prefetch(
        self, version: AdapterVersion, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Loads the version as what was used longest ago, when nobody waits for the slot that it
        takes, and if no other has to leave; for a pinned one others do. `is_wanted` is asked when
        the slot has come. Raises as `acquire` does.
        """
        while not self._queue.try_acquire_slot(version):
            await self._queue.slot_freed()
        try:
            has_room = version.lora_id in self._pinned or self._has_room
            if has_room and is_wanted() and version.lora_id not in self._resident:
                await self._make_resident(version)
                if version.lora_id in self._resident:  # else the engine has died since
                    self._resident.move_to_end(version.lora_id, last=False)
        finally:
            self._queue.release_slot(version)

    def forget_all(self) -> tuple[AdapterVersion, ...]:
        """The engine has lost all it held: what is asked for from now on is loaded again.

        What is still acquired ends as ever; its requests find out from the engine, and so do loads
        under way. Returns what was held: what is pinned first, then what is acquired, then last
        use first.
        """

        def precedence(version: AdapterVersion) -> tuple[bool, bool]:
            lora_id = version.lora_id
            return lora_id not in self._pinned, not self._queue.is_slot_in_use(lora_id)

        latest = reversed(self.resident)
        held = sorted(latest, key=precedence)
        self._generation += 1
        self._resident.clear()
        self._leaving.clear()
        return tuple(held)

    @asynccontextmanager
    async def drained(
        self, version: AdapterVersion, stays: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[bool]:
        """Waits until no request holds the version and takes it out of the engine; nobody loads it
        before the block has ended. Yields False where it stays: it was asked for again meanwhile,
        or `stays`, which is asked at the last moment, says so.

        Raises MachineFault where the engine does not let go of it.
        """
        lora_id = version.lora_id
        while self._queue.is_slot_in_use(lora_id):
            await self._queue.slot_freed()
        is_out = False
        try:
            async with self._one_at_a_time:
                # Waiting for the lock took time, in which requests may have come.
                if not self._queue.is_slot_in_use(lora_id) and not stays():
                    self._kept_out[lora_id] = asyncio.Event()
                    is_out = True
                    await self._take_out(lora_id)
            yield is_out
        finally:
            if is_out:
                self._kept_out.pop(lora_id).set()

    async def drain(self, version: AdapterVersion) -> None:
        """As `drained`, with nothing to be done before it may come back."""
        async with self.drained(version):
            pass

    async def leaving(self) -> None:
        """Returns when something has to be taken out of the engine that would not leave."""
        await self._has_leaving.wait()

    async def take_out_leaving(self) -> None:
        """Tries again. Raises MachineFault where the engine does not let go of one."""
        async with self._one_at_a_time:
            self._has_leaving.clear()
            kept: MachineFault | None = None
            for lora_id in tuple(self._leaving):
                try:
                    await self._take_out(lora_id)
                except MachineFault as fault:
                    kept = fault  # the others are tried all the same
        if kept is not None:
            raise kept

    async def close(self) -> None:
        """Ends loads under way, so that none is left without an owner; the engine ends next."""
        loads = tuple(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    @property
    def _has_room(self) -> bool:
        held = self._resident.keys() | self._leaving.keys() | self._loads.keys()
        return len(held) < self._max_resident

    async def _make_resident(self, version: AdapterVersion) -> LoadedAdapter:
        # First whether it is being loaded: until that is over it may still be found wanting.
        load = self._loads.get(version.lora_id)
        if load is None:
            if (adapter := self._resident.get(version.lora_id)) is not None:
                return adapter
            load = asyncio.create_task(self._load(version), name=f"load {version}")
            self._loads[version.lora_id] = load
            # The load holds the slot itself: whoever asked for it may have left before it is done.
            self._queue.share_slot(version)
            load.add_done_callback(lambda _: self._end_load(version))
        # A client that leaves must not stop a load that others wait for, nor leave the engine with
        # an adapter that nobody knows of.
        return await asyncio.shield(load)

    def _end_load(self, version: AdapterVersion) -> None:
        del self._loads[version.lora_id]
        self._queue.release_slot(version)

    async def _load(self, version: AdapterVersion) -> LoadedAdapter:
        while (let_in := self._kept_out.get(version.lora_id)) is not None:
            await let_in.wait()
        try:
            return await self._loader.load(version, self._placing)
        except BaseException:
            # It was in the engine, and what followed failed: nobody has acquired it yet.
            if version.lora_id in self._resident:
                async with self._one_at_a_time:
                    await self._try_to_take_out(version.lora_id)
            raise

    @asynccontextmanager
    async def _placing(self, adapter: LoadedAdapter) -> AsyncIterator[None]:
        """Held while the loader puts the adapter into the engine, with room for it; what is raised
        in it, whatever it is, takes the adapter out again.
        """
        lora_id = adapter.version.lora_id
        async with self._one_at_a_time:
            await self._make_room(lora_id)
            generation = self._generation
            try:
                yield
                if generation != self._generation:
                    raise EngineDead(
                        f"The engine restarted while {adapter.version} was loaded; try again "
                        "shortly.",
                        retry_after_seconds=1.0,
                    )
            except BaseException:
                self._leaving[lora_id] = adapter
                await self._try_to_take_out(lora_id)
                raise
            self._resident[lora_id] = adapter

    async def _make_room(self, lora_id: int) -> None:
        """Raises MachineFault where the engine keeps what has to leave."""
        for leaving in tuple(self._leaving):
            if leaving == lora_id or self._is_full:
                await self._take_out(leaving)
        while self._is_full:
            idle = next((i for i in self._resident if self._may_leave(i)), None)
            if idle is None:
                return  # cannot be: there is room for all pins and all slots, and this has a slot
            await self._take_out(idle)

    @property
    def _is_full(self) -> bool:
        return len(self._resident) + len(self._leaving) >= self._max_resident

    def _may_leave(self, lora_id: int) -> bool:
        return lora_id not in self._pinned and not self._queue.is_slot_in_use(lora_id)

    async def _try_to_take_out(self, lora_id: int) -> None:
        """As `_take_out`, for who has something worse to raise."""
        try:
            await self._take_out(lora_id)
        except MachineFault as fault:
            logger.warning("%s", fault.reason)

    async def _take_out(self, lora_id: int) -> None:
        """From its beginning on nobody acquires the version, and until it has succeeded it counts
        as in the engine. Does nothing where it is not. Raises MachineFault.
        """
        if (resident := self._resident.pop(lora_id, None)) is not None:
            self._leaving[lora_id] = resident
        adapter = self._leaving.get(lora_id)
        if adapter is None:
            return
        try:
            await self._loader.unload(adapter)
        except EngineDead:
            pass  # and its weights with it
        except BaseException as error:
            self._has_leaving.set()
            if not isinstance(error, Exception):
                raise  # nobody knows how the call ended: it is made again
            raise MachineFault(
                "The engine does not let go of another adapter; try again shortly.",
                reason=f"the engine does not let go of {adapter.version}, which is tried again: "
                f"{str(error) or type(error).__name__}",
                retry_after_seconds=1.0,
            ) from error
        if self._leaving.get(lora_id) is adapter:  # else the engine has restarted meanwhile
            del self._leaving[lora_id]
