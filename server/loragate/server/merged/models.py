"""Merged models in engines of their own, beside the base model's, as the registry says.

Each has its engine, started on demand where there is memory, watched and started again when it
dies, and drained before it is closed. The base model's engine knows nothing of it: whenever a
merged model cannot answer, its version does, as an adapter beside the base model.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import (
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path

from loragate.adapters.errors import LoragateError, NotMerged, VersionNotFound
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.merged_states import MergedState
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import ACTOR, Route
from loragate.server.engine.memory import (
    MemoryRequirement,
)
from loragate.server.engine.protocol import Engine
from loragate.server.engine.supervision import EngineState, SupervisedEngine
from loragate.server.errors import EngineDead
from loragate.server.merged.backend import MergedBackend
from loragate.server.merged.memory import InsufficientMemory, MemoryBudget, MergedMemory

logger = logging.getLogger(__name__)
_TELL_AGAIN_SECONDS = 1.0
_LAST = (MergedState.REFUSED, MergedState.FAILED)  # nothing is tried after these by itself


class _Unwanted(Exception):
    """What was begun for a merged model is wanted no longer."""


@dataclass(slots=True, eq=False)
class MergedModel:
    """One merged model in its engine, with the requests that it answers now."""

    version: AdapterVersion
    need: MemoryRequirement
    engine: SupervisedEngine
    running: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator[Engine]:
        self.running += 1
        self._idle.clear()
        try:
            yield self.engine
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def drained(self) -> None:
        if self.running:
            await self._idle.wait()


@dataclass(slots=True)
class _Service:
    """The task that serves one version merged, until that is no longer wanted."""

    task: asyncio.Task[None]
    unwanted: asyncio.Event
    state: MergedState | None = None
    reason: str = ""


class MergedModels:
    """Follows the registry's snapshot; `running` owns the engines and their tasks."""

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotWatcher,
        base_engine: Engine,
        merged_backend: MergedBackend,
        budget: MemoryBudget,
        changed: asyncio.Event,
        background: BackgroundTasks,
        backoff: Backoff | None = None,
    ) -> None:
        """`changed` is set whenever there is a new snapshot."""
        self._registry = registry
        self._snapshots = snapshots
        self._base_engine = base_engine
        self._merged_backend = merged_backend
        self._memory = MergedMemory(budget, merged_backend, base_engine, self._promised)
        self._changed = changed
        self._background = background
        self._backoff = backoff
        self._services: dict[int, _Service] = {}  # by lora_id
        # Those that requests may reach, by lora_id. Replaced, never changed: threads read it.
        self._models: Mapping[int, MergedModel] = {}
        # What the registry could not be told yet of versions, served still or no longer.
        self._unsaid: dict[AdapterVersion, tuple[MergedState | None, str]] = {}
        self._one_tells = asyncio.Lock()
        self._one_start = asyncio.Lock()  # what is starting has not taken its memory yet

    @property
    def models(self) -> tuple[MergedModel, ...]:
        """Those whose engines have been started, in the order of that. Any thread may ask."""
        return tuple(self._models.values())

    def reachable(self, route: Route) -> Route:
        """The route, or the one to its version unmerged while the merged model cannot answer."""
        if route.mode == "unmerged":
            return route
        model = None if route.version is None else self._models.get(route.version.lora_id)
        return route if model is not None and model.engine.is_alive else route.unmerged()

    def has_room(self, route: Route, tokens: int) -> bool:
        """Whether a prompt and its answer of so many tokens fit into the context of what answers by
        the route. A merged model's own cache may hold a shorter one than the base model's, for
        which every request has been prepared.
        """
        if route.version is None or route.mode == "unmerged":
            return True
        model = self._models.get(route.version.lora_id)
        return model is None or tokens <= model.engine.model.max_model_len

    @contextmanager
    def acquire(self, route: Route) -> Iterator[Engine]:
        """The engine that answers by the route, for one request. Raises EngineDead."""
        if route.version is None or route.mode == "unmerged":
            yield self._base_engine
            return
        model = self._models.get(route.version.lora_id)
        if model is None:
            raise EngineDead(f"{route.answers} has just stopped.", retry_after_seconds=1.0)
        with model.in_use() as engine:
            yield engine

    @asynccontextmanager
    async def running(self) -> AsyncIterator["MergedModels"]:
        """Serves what the registry asks for, then follows it; leaving closes all engines."""
        await asyncio.to_thread(self._registry.merged.reset, ACTOR)
        await self._snapshots.refresh()
        self._changed.set()
        try:
            async with self._background.repeating(
                "merged models", self._reconcile, wait=self._wait
            ):
                yield self
        finally:
            tasks = [service.task for service in self._services.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self) -> None:
        """Returns when there is a new snapshot, or something to be told again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TELL_AGAIN_SECONDS if self._unsaid else None):
                await self._changed.wait()

    async def _reconcile(self) -> None:
        self._changed.clear()
        for version in tuple(self._unsaid):
            await self._tell(version)
        snapshot = self._snapshots.current
        wanted = snapshot.served_merged()
        for version in wanted:
            status = snapshot.merged(version)
            if status is None or status.state is not MergedState.WAITING:
                continue
            service = self._services.get(version.lora_id)
            if service is None:
                self._begin(version)
            elif service.state in _LAST:
                continue  # asked for again while the service of before ends: `_end` wakes us
            elif service.state is not None and not service.unwanted.is_set():
                await self._say(version, service.state, service.reason)  # taken back, and asked
        ids = {version.lora_id for version in wanted}
        for lora_id, service in self._services.items():
            if lora_id not in ids:
                service.unwanted.set()

    def _begin(self, version: AdapterVersion) -> None:
        unwanted = asyncio.Event()
        task = asyncio.create_task(self._serve(version, unwanted), name=f"{version} merged")
        self._services[version.lora_id] = _Service(task, unwanted)
        task.add_done_callback(lambda _: self._end(version))

    def _end(self, version: AdapterVersion) -> None:
        del self._services[version.lora_id]
        self._changed.set()  # it may be wanted again by now

    async def _serve(self, version: AdapterVersion, unwanted: asyncio.Event) -> None:
        """From when it is asked for until it is not; what goes wrong is told in the registry."""
        try:
            folder = await self._folder(version, unwanted)
            async with self._started(version, folder, unwanted) as model:
                await self._serve_until(model, unwanted)
        except _Unwanted:
            await self._say(version, None)
        except InsufficientMemory as error:
            await self._say(version, MergedState.REFUSED, str(error))
        except Exception as error:  # a start fails in ways that nobody can list
            logger.exception("%s cannot be served merged", version)
            await self._say(version, MergedState.FAILED, f"{error}" or type(error).__name__)
        else:
            await self._say(version, None)

    async def _folder(self, version: AdapterVersion, unwanted: asyncio.Event) -> Path:
        """The merged model's; it is made first where there is none. Raises InsufficientMemory, and
        _Unwanted
        where it is wanted no longer.
        """
        try:
            return await self._find(version)
        except NotMerged:
            async with self._one_start:
                if unwanted.is_set():  # others may have held the lock for hours
                    raise _Unwanted from None
                await self._memory.require_for_merging()
                await self._say(version, MergedState.MAKING)
                await _unless(unwanted, self._merged_backend.make(version))
            return await self._find(version)

    async def _find(self, version: AdapterVersion) -> Path:
        name = AdapterName(version.tenant, version.name)
        return await asyncio.to_thread(self._registry.merges.folder, name, version.number)

    @asynccontextmanager
    async def _started(
        self, version: AdapterVersion, folder: Path, unwanted: asyncio.Event
    ) -> AsyncIterator[MergedModel]:
        """Raises InsufficientMemory, and _Unwanted where it is wanted no longer."""
        need = await asyncio.to_thread(self._memory.need_of, folder)
        async with AsyncExitStack() as stack:
            async with self._one_start:
                if unwanted.is_set():
                    raise _Unwanted
                await self._memory.require_for_engine(need)
                await self._say(version, MergedState.STARTING)
                engine = await stack.enter_async_context(
                    SupervisedEngine.running(
                        lambda: self._merged_backend.start(folder, need), backoff=self._backoff
                    )
                )
            yield MergedModel(version, need, engine)

    def _promised(self) -> list[tuple[MemoryRequirement, Engine]]:
        return [(model.need, model.engine) for model in self.models]

    async def _serve_until(self, model: MergedModel, unwanted: asyncio.Event) -> None:
        version = model.version

        async def reflect(state: EngineState) -> None:
            if version.lora_id in self._models:
                is_there = state == "alive"
                await self._say(
                    version, MergedState.SERVING if is_there else MergedState.RESTARTING
                )

        model.engine.on_change(reflect)
        self._models = {**self._models, version.lora_id: model}
        try:
            await self._say(version, MergedState.SERVING)
            logger.info(
                "%s is served merged, in a context of %d tokens",
                version,
                model.engine.model.max_model_len,
            )
            await unwanted.wait()
        finally:
            # From now on requests go to the version unmerged.
            self._models = {
                lora_id: other for lora_id, other in self._models.items() if other is not model
            }
        await model.drained()
        logger.info("%s is no longer served merged", version)

    async def _say(
        self, version: AdapterVersion, state: MergedState | None, reason: str = ""
    ) -> None:
        """Never raises: the engine is as it is, whether that can be told or not."""
        if (service := self._services.get(version.lora_id)) is not None:
            service.state, service.reason = state, reason
        self._unsaid[version] = state, reason
        if not await self._tell(version):
            self._changed.set()  # a later round tells it

    async def _tell(self, version: AdapterVersion) -> bool:
        """Whether the registry knows now what is to be said of the version."""
        async with self._one_tells:  # two threads could bring the newer state first
            if (said := self._unsaid.get(version)) is None:
                return True
            state, reason = said
            try:
                await asyncio.to_thread(
                    self._registry.merged.set_state, version, state, ACTOR, reason
                )
            except VersionNotFound as error:
                logger.warning("%s is served merged for nobody: %s", version, error)
            except Exception as error:  # noqa: BLE001 - an engine's watch calls this, and must go on
                logger.warning("how %s stands could not be kept: %s", version, error)
                return False
            if self._unsaid.get(version) == said:  # else there is a newer state
                del self._unsaid[version]
        # What ends here is not to be begun again by an older snapshot.
        with suppress(LoragateError):
            await self._snapshots.refresh()
        return True


async def _unless(unwanted: asyncio.Event, work: Awaitable[None]) -> None:
    """Does the work; raises _Unwanted where that is wanted no longer, and ends the work."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(unwanted.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Unwanted
        working.result()
    finally:
        for each in (working, waiting):
            each.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
