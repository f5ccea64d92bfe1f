"""How a version gets into the engine: checked on disk, loaded, checked there, each step on record.

Nothing else loads adapters. What passed once in this process is only loaded the next time.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from loragate.adapters.adapter_files import inspect
from loragate.adapters.errors import InvalidAdapter, StoreError
from loragate.adapters.gate import StaticGate
from loragate.adapters.names import AdapterVersion
from loragate.adapters.reference import Reference
from loragate.adapters.registry import Registry
from loragate.adapters.states import AdapterState
from loragate.adapters.store import ArtifactStore
from loragate.server.engine import Engine, LoadedAdapter
from loragate.server.errors import AdapterUnavailable, EngineDead
from loragate.server.pace import let_steps_pass
from loragate.server.probe import Probe

logger = logging.getLogger(__name__)
ACTOR = "server"


class Loader:
    """Loads versions into the engine, and keeps the registry's word on their states true."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        store: ArtifactStore,
        gate: StaticGate,
        probe: Probe,
        on_load: Callable[[AdapterVersion, float], None] = lambda version, seconds: None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_load` hears of each load and its seconds; `is_busy` says whether requests run, whose
        steps the checks would slow.
        """
        self._engine = engine
        self._registry = registry
        self._store = store
        self._gate = gate
        self._probe = probe
        self._on_load = on_load
        self._is_busy = is_busy
        self._passed: set[int] = set()  # lora ids

    async def warm(self) -> None:
        """Gets ready for the first check. Raises EngineDead."""
        await self._probe.warm()

    async def load(self, version: AdapterVersion) -> LoadedAdapter:
        """Raises AdapterUnavailable for a version that does not pass, and EngineDead."""
        started = time.perf_counter()
        if version.lora_id in self._passed:
            adapter = LoadedAdapter(version, self._store.path(version.digest))
            await self._engine.load(adapter)
        else:
            adapter = await self._load_and_check(version)
        self._on_load(version, time.perf_counter() - started)
        return adapter

    async def unload(self, adapter: LoadedAdapter) -> None:
        await self._engine.unload(adapter)

    def forget(self, version: AdapterVersion) -> None:
        """The version is checked again when it is loaded the next time."""
        self._passed.discard(version.lora_id)

    async def let_steps_pass(self) -> None:
        """Between two pieces of work of some milliseconds each, where requests run."""
        await let_steps_pass(self._is_busy)

    async def set_state(self, version: AdapterVersion, state: AdapterState, why: str = "") -> None:
        await asyncio.to_thread(self._registry.set_state, version, state, ACTOR, why)

    async def _load_and_check(self, version: AdapterVersion) -> LoadedAdapter:
        await self.set_state(version, AdapterState.LOADING)
        try:
            await self.let_steps_pass()
            adapter, reference = await asyncio.to_thread(self._check_on_disk, version)
            await self.let_steps_pass()
            await self._engine.load(adapter)
            await self._check_in_engine(adapter, reference)
        except EngineDead:
            await self.set_state(version, AdapterState.PUBLISHED, "the engine died meanwhile")
            raise
        except StoreError as error:  # nothing is wrong with the version: it comes again
            await self.set_state(version, AdapterState.PUBLISHED, str(error))
            raise
        except (InvalidAdapter, AdapterUnavailable) as error:
            logger.warning("%s cannot serve: %s", version, error)
            code = error.code or "adapter_refused"
            await self.set_state(version, AdapterState.FAILED, f"{code}: {error}")
            raise AdapterUnavailable(f"{version} cannot serve: {error}", code=code) from error
        await self.set_state(version, AdapterState.READY)
        self._passed.add(version.lora_id)
        return adapter

    def _check_on_disk(self, version: AdapterVersion) -> tuple[LoadedAdapter, Reference | None]:
        """The adapter, and the reference of its manifest. Raises InvalidAdapter."""
        try:
            self._store.verify(version.digest)
        except StoreError as error:
            raise InvalidAdapter("damaged_artifact", str(error)) from error
        files = inspect(self._store.path(version.digest))
        self._gate.check_header(files)
        return LoadedAdapter(version, files.folder), files.manifest.reference

    async def _check_in_engine(self, adapter: LoadedAdapter, reference: Reference | None) -> None:
        try:
            await self._probe.check(adapter, reference)
        except InvalidAdapter:
            await self._engine.unload(adapter)
            raise
