"""Which adapter versions are in the engine, and who holds them there.

The engine has `max_loras` slots and evicts by itself, even what a running request needs, and then
reads the adapter's directory again inside a forward step. So it is never given the occasion: at
most `max_loras` distinct versions are leased at once, and what is loaded beyond the engine's CPU
tier is unloaded here first, least recently used, never what is leased.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from loragate.adapters.names import AdapterVersion
from loragate.server.core import Route
from loragate.server.engine import LoadedAdapter
from loragate.server.errors import AdapterUnavailable


@dataclass(slots=True)
class _Resident:
    adapter: LoadedAdapter
    leases: int = 0


class AdapterLoader(Protocol):
    """What puts versions into the engine and takes them out; see `loading.Loader`."""

    async def load(self, version: AdapterVersion) -> LoadedAdapter: ...
    async def unload(self, adapter: LoadedAdapter) -> None: ...


class Residency:
    """Leases adapter versions to requests, loading each on first use, once, one at a time."""

    def __init__(
        self, loader: AdapterLoader, *, max_leased: int, max_resident: int, wait_seconds: float
    ) -> None:
        """`max_leased` distinct versions at once, `max_resident` in the engine altogether."""
        self._loader = loader
        self._max_leased = max_leased
        self._max_resident = max_resident
        self._wait_seconds = wait_seconds
        self._resident: OrderedDict[int, _Resident] = OrderedDict()  # by lora_id, oldest use first
        self._loads: dict[int, asyncio.Task[_Resident]] = {}
        self._claims: dict[int, int] = {}  # lora_id → requests that hold or await it, and its load
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._one_load = asyncio.Lock()

    @property
    def resident(self) -> tuple[AdapterVersion, ...]:
        return tuple(entry.adapter.version for entry in self._resident.values())

    @property
    def leased(self) -> int:
        """Distinct versions that requests hold now."""
        return len(self._claims)

    @asynccontextmanager
    async def lease(self, route: Route) -> AsyncIterator[LoadedAdapter | None]:
        """Holds the route's version in the engine; None for the base model.

        Waits for a slot where every slot is held. Raises AdapterUnavailable where none came free
        in time, or where the engine refuses the adapter.
        """
        version = route.version
        if version is None:
            yield None
            return
        await self._claim(version)
        try:
            entry = await self._make_resident(version)
            entry.leases += 1
            try:
                yield entry.adapter
            finally:
                entry.leases -= 1
                if self._resident.get(version.lora_id) is entry:  # else the engine has restarted
                    self._resident.move_to_end(version.lora_id)
        finally:
            self._release(version)

    def forget_all(self) -> None:
        """The engine has lost all it held: what is asked for from now on is loaded again.

        Leases that are still held end as ever; their requests find out from the engine.
        """
        self._resident.clear()

    async def drain(self, version: AdapterVersion) -> None:
        """Waits until no request holds the version, then takes it out of the engine."""
        while version.lora_id in self._claims:
            await self._next_release()
        async with self._one_load:
            entry = self._resident.pop(version.lora_id, None)
            if entry is not None:
                await self._loader.unload(entry.adapter)

    async def close(self) -> None:
        """Waits for loads under way, so that none is left without an owner."""
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    async def _claim(self, version: AdapterVersion) -> None:
        try:
            async with asyncio.timeout(self._wait_seconds):
                while not self._has_slot_for(version):
                    await self._next_release()
        except TimeoutError:
            raise AdapterUnavailable(
                f"All {self._max_leased} adapter slots stayed busy for "
                f"{self._wait_seconds:g} s; try again, or raise engine.max_loras.",
                code="no_adapter_slot",
                retry_after_seconds=1.0,
            ) from None
        self._claims[version.lora_id] = self._claims.get(version.lora_id, 0) + 1

    def _has_slot_for(self, version: AdapterVersion) -> bool:
        return version.lora_id in self._claims or len(self._claims) < self._max_leased

    async def _next_release(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _release(self, version: AdapterVersion) -> None:
        self._claims[version.lora_id] -= 1
        if self._claims[version.lora_id] == 0:
            del self._claims[version.lora_id]
        for turn in self._waiting:  # each looks again whether there is a slot for its version
            if not turn.done():
                turn.set_result(None)
        self._waiting.clear()

    async def _make_resident(self, version: AdapterVersion) -> _Resident:
        if (entry := self._resident.get(version.lora_id)) is not None:
            return entry
        load = self._loads.get(version.lora_id)
        if load is None:
            load = asyncio.create_task(self._load(version), name=f"load {version}")
            self._loads[version.lora_id] = load
            # The load claims a slot itself: whoever asked for it may have left before it is done.
            self._claims[version.lora_id] += 1
            load.add_done_callback(lambda _: self._end_load(version))
        # A client that leaves must not stop a load that others wait for, nor leave the engine with
        # an adapter that nobody knows of.
        return await asyncio.shield(load)

    def _end_load(self, version: AdapterVersion) -> None:
        del self._loads[version.lora_id]
        self._release(version)

    async def _load(self, version: AdapterVersion) -> _Resident:
        async with self._one_load:
            await self._make_room()
            entry = _Resident(await self._loader.load(version))
            self._resident[version.lora_id] = entry
            return entry

    async def _make_room(self) -> None:
        while len(self._resident) >= self._max_resident:
            idle = next((i for i in self._resident if i not in self._claims), None)
            if idle is None:
                return  # cannot be: max_resident is at least max_loras, and this claim is one
            await self._loader.unload(self._resident.pop(idle).adapter)
