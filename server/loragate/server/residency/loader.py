"""How a version gets into the engine: checked on disk, loaded, checked there, each step on record.

Nothing else loads adapters. Two kinds of failure are kept apart. A fault of the version, such as
weights that change nothing, is the same on every machine: the version is FAILED. A fault of this
machine, such as a file that is missing or damaged here, a full disk or an engine that does not
answer, says nothing about the version: it stays PUBLISHED, with the reason, and comes again.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NoReturn, TypeVar
from weakref import WeakValueDictionary

from loragate.adapters.errors import (
    IllegalMove,
    InvalidAdapter,
    LoragateError,
    StoreError,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.format.files import inspect
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.format.ready_file import ReadyAdapter
from loragate.adapters.format.reference import Reference
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.store import ArtifactStore
from loragate.server.concurrency.retries import Backoff, Retries
from loragate.server.core import ACTOR
from loragate.server.engine.protocol import Engine, LoadedAdapter, Placing
from loragate.server.errors import AdapterUnavailable, EngineDead, MachineFault
from loragate.server.residency.probe import Probe

logger = logging.getLogger(__name__)
_STEP_SECONDS = 0.06  # of an engine on two cores; one on a GPU takes less
NOT_LOADED = "not_loaded"
"""The code, at the beginning of a reason, of what only this machine could not load."""

_UNLOAD_SECONDS = 30.0
# Of what failed on this machine: each try hashes its files again, whoever asks.
_RETRIES = Backoff(first=1.0, most=30.0)
_Result = TypeVar("_Result")


class Loader:
    """Loads versions into the engine, and records their states in the registry."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        store: ArtifactStore,
        publish_check: PublishCheck,
        probe: Probe,
        on_load: Callable[[AdapterVersion, float], None] = lambda version, seconds: None,
        is_busy: Callable[[], bool] = lambda: False,
        *,
        timeout_seconds: float = 120.0,
        retries: Retries[int] | None = None,
    ) -> None:
        """`on_load` gets each load and its seconds; `is_busy` says whether requests run, whose
        steps the checks would slow; `timeout_seconds` bounds what the disk and the engine each
        do of one load.
        """
        self._engine = engine
        self._registry = registry
        self._store = store
        self._publish_check = publish_check
        self._probe = probe
        self._on_load = on_load
        self._is_busy = is_busy
        self._timeout_seconds = timeout_seconds
        self._passed: dict[int, AdapterVersion] = {}  # by lora_id
        self._refusals: dict[int, AdapterUnavailable] = {}  # by lora_id: of the last try
        self._retries = retries or Retries(_RETRIES)
        self._unsaid: dict[int, Callable[[], None]] = {}  # by lora_id; calls of the registry
        self._stuck: set[str] = set()  # tenants for whom a thread reads for too long
        self._disk = ThreadPoolExecutor(_checks_at_once(), thread_name_prefix="adapter check")
        # One check of a tenant at a time, so that nobody's slow ones take all threads. Kept by
        # those who hold or await them.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def passed(self) -> tuple[AdapterVersion, ...]:
        """Those that passed the check and that this server has set READY, in the engine or not."""
        return tuple(self._passed.values())

    def has_passed(self, version: AdapterVersion) -> bool:
        return version.lora_id in self._passed

    async def warm(self) -> None:
        """Gets ready for the first check, and says in which form publishers are to leave adapters.
        Raises MachineFault, EngineDead and TimeoutError.
        """
        async with asyncio.timeout(self._timeout_seconds):
            if (form := self._engine.model.ready_form) is not None:
                await asyncio.to_thread(self._store.want_ready, form)
            await self._probe.warm()

    async def load(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        """Checks the version on disk, beside other loads, and puts it into the engine in `placing`;
        the first time it is checked there too.

        Raises AdapterUnavailable for a version that does not pass, MachineFault where that says
        nothing about it, VersionRetired, EngineDead, and what nobody foresaw as it is. What was
        refused is refused again without another try until its wait is over: many may be queued.
        """
        refusal = self._refusals.get(version.lora_id)
        if refusal is not None and not self._retries.is_due(version.lora_id):
            raise self._again(version, refusal)
        if not self._engine.is_alive:  # before any work on the disk
            raise EngineDead(
                "The engine is down and restarts by itself; try again shortly.",
                retry_after_seconds=self._engine.retry_after_seconds,
            )
        started = time.perf_counter()
        try:
            adapter = await self._load(version, placing)
        except MachineFault as fault:
            await self._note_fault(version, fault)
            raise self._again(version, fault) from fault
        except AdapterUnavailable as refused:
            self._retries.failed(version.lora_id)
            self._refusals[version.lora_id] = refused
            raise
        except (EngineDead, VersionRetired):
            raise
        except Exception as error:  # nobody can list how disks, databases and engines fail
            logger.exception("%s is not loaded", version)
            await self._note_fault(version, _fault(version, f"{type(error).__name__}: {error}"))
            raise
        self._refusals.pop(version.lora_id, None)
        self._retries.forget(version.lora_id)
        self._on_load(version, time.perf_counter() - started)
        return adapter

    def try_again(self, version: AdapterVersion) -> None:
        """The next load is tried whatever the last one said: for those with waits of their own."""
        self._refusals.pop(version.lora_id, None)

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Raises what the engine raises, and TimeoutError."""
        async with asyncio.timeout(_UNLOAD_SECONDS):
            await self._engine.unload(adapter)

    async def yield_to_engine(self) -> None:
        """Between two pieces of work of some milliseconds each, where requests run."""
        await yield_to_engine(self._is_busy)

    async def set_state(self, version: AdapterVersion, state: AdapterState, why: str = "") -> None:
        await asyncio.to_thread(self._registry.states.set, version, state, ACTOR, why)
        self._unsaid.pop(version.lora_id, None)

    async def _set_ready(self, version: AdapterVersion, why: str) -> None:
        await asyncio.to_thread(self._registry.aliases.set_ready, version, ACTOR, why)
        self._unsaid.pop(version.lora_id, None)

    async def begin_drain(self, version: AdapterVersion) -> None:
        """DRAINING from now on, where the registry has it in an engine. Raises StoreError."""
        try:
            await self.set_state(version, AdapterState.DRAINING)
        except IllegalMove as error:
            logger.debug("%s is drained as it is: %s", version, error)

    async def end_drain(self, version: AdapterVersion) -> None:
        """It is out of the engine, and is checked again when it is loaded the next time. Raises
        StoreError.
        """
        self._passed.pop(version.lora_id, None)
        try:
            await self.set_state(version, AdapterState.PUBLISHED, "drained")
        except IllegalMove as error:
            logger.debug("%s is drained: %s", version, error)

    async def set_ready(self, version: AdapterVersion, why: str = "") -> None:
        """READY, wherever the registry had it, and what every alias means that is to mean it.
        Raises VersionRetired and StoreError.
        """
        try:
            await self._set_ready(version, why)
        except IllegalMove as error:
            if error.current != AdapterState.READY:
                await self._set_loading(version)
                await self._set_ready(version, why)

    async def say_unsaid(self) -> None:
        """Tells the registry what it could not be told when it happened. Raises StoreError."""
        for lora_id, say in tuple(self._unsaid.items()):
            with suppress(IllegalMove, VersionNotFound):  # it has gone on without us
                await asyncio.to_thread(say)
            if self._unsaid.get(lora_id) is say:  # else there is a newer state
                del self._unsaid[lora_id]

    def close(self) -> None:
        """Starts no more checks; those under way end with the process."""
        self._disk.shutdown(wait=False, cancel_futures=True)

    async def _load(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        """Raises MachineFault for all that `_refuse` and the store blame on this machine."""
        try:
            if version.lora_id in self._passed:
                return await self._load_again(version, placing)
            adapter = await self._load_and_check(version, placing)
        except StoreError as error:
            raise _fault(version, str(error)) from error
        self._passed[version.lora_id] = version
        return adapter

    async def _load_again(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        """What passed once: its content needs no second check, if it still is that content."""
        adapter, _ = await self._on_disk(version, self._get_ready)
        try:
            async with placing(adapter):
                await self._put_in(adapter)
        except MachineFault:
            raise
        except AdapterUnavailable as error:
            raise _fault(version, f"it passed before and is refused now: {error}") from error
        return adapter

    async def _load_and_check(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        await self.yield_to_engine()
        is_elsewhere = False
        try:
            adapter, reference = await self._on_disk(version, self._check_on_disk)
            is_elsewhere = await self._set_loading(version)
            await self.yield_to_engine()
            async with placing(adapter):
                found = await self._put_in(adapter, partial(self._probe.check, adapter, reference))
            await self.set_ready(version, found)
        except MachineFault:
            raise
        except (InvalidAdapter, AdapterUnavailable) as error:
            if is_elsewhere:
                raise _fault(version, f"READY for another server, refused here: {error}") from error
            await self._refuse(version, error)
        except EngineDead:
            await self._say(self._not_loaded(version, "the engine died meanwhile"), version)
            raise
        except asyncio.CancelledError:  # the server ends: no time for the database
            self._unsaid[version.lora_id] = self._not_loaded(version, "its load was given up")
            raise
        return adapter

    async def _put_in(
        self, adapter: LoadedAdapter, check: Callable[[], Awaitable[str]] | None = None
    ) -> str:
        """What the check found. Raises MachineFault where the engine takes too long for both."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._engine.load(adapter)
                return "" if check is None else await check()
        except TimeoutError as error:
            raise _fault(
                adapter.version,
                f"it was not in the engine after {self._timeout_seconds:g} s "
                "(engine.load_timeout_seconds), so the engine is stuck or far too slow",
            ) from error

    def _get_ready(self, version: AdapterVersion) -> tuple[LoadedAdapter, ReadyAdapter | None]:
        """Where the engine is to read the version, and what the ready file says where it reads
        one. That is found sound by its checksum, which takes a millisecond; without one the
        artifact is, by its digest. Raises StoreError where neither is what was published.
        """
        path, form = self._store.path(version.digest), self._engine.model.ready_form
        if form is None:
            self._store.verify(version.digest)
        elif (found := self._store.ready(version.digest, form)) is not None:
            return LoadedAdapter(version, path, found[0]), found[1]
        return LoadedAdapter(version, path), None

    def _check_on_disk(self, version: AdapterVersion) -> tuple[LoadedAdapter, Reference | None]:
        """Raises InvalidAdapter for what its content is, StoreError for what became of it here."""
        try:
            adapter, ready = self._get_ready(version)
            files = inspect(adapter.path) if ready is None else ready.files(adapter.path)
            self._publish_check.check_header(files)
        except InvalidAdapter as error:
            if isinstance(error.__cause__, OSError):
                raise StoreError(str(error)) from error
            raise
        return adapter, files.manifest.reference

    def _verify(self, version: AdapterVersion) -> None:
        """Looks whether it was the version that was refused. Raises StoreError where the files
        here are not what was published, or make another ready file than there was.
        """
        form = self._engine.model.ready_form
        if form is None:
            self._store.verify(version.digest)
        elif self._store.renews(version.digest, form):
            raise StoreError(
                f"the ready file of {version} was not what its artifact makes, and was made again; "
                "check this machine's memory and disk"
            )

    async def _on_disk(
        self, version: AdapterVersion, work: Callable[[AdapterVersion], _Result]
    ) -> _Result:
        """Raises MachineFault where reading takes too long. The thread cannot be stopped; until it
        ends the tenant gets no other, so that what hangs for one leaves the threads to the others.
        """
        tenant, seconds = version.tenant, f"{self._timeout_seconds:g} s"
        slow = f"{seconds} (engine.load_timeout_seconds), so the disk is stuck or far too slow"
        async with self._turn_of(tenant):
            if tenant in self._stuck:
                raise _fault(version, f"files of its tenant are still being read after {slow}")
            reading = asyncio.get_running_loop().run_in_executor(self._disk, work, version)
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await asyncio.shield(reading)
            except TimeoutError as error:
                if reading.done():
                    raise  # of the disk's own, such as a network file system's
                self._stuck.add(tenant)
                reading.add_done_callback(lambda _: self._stuck.discard(tenant))
                raise _fault(version, f"its files were not read after {slow}") from error

    @asynccontextmanager
    async def _turn_of(self, tenant: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        async with turn:
            yield

    async def _set_loading(self, version: AdapterVersion) -> bool:
        """Whether another server has it READY already, which stays as it is. Raises
        VersionRetired, and StoreError.
        """
        set_loading = partial(
            self._registry.states.set,
            *(version, AdapterState.LOADING, ACTOR),
            unless=AdapterState.READY,
        )
        try:
            state = await asyncio.to_thread(set_loading)
        except IllegalMove as error:
            if error.current == AdapterState.RETIRED:
                raise VersionRetired(version.tenant, version.name, version.version) from error
            # Else it is LOADING already, from a try whose end could not be told, or DRAINING, from
            # which READY follows as well.
            state = AdapterState(error.current)
        self._unsaid.pop(version.lora_id, None)
        return state is AdapterState.READY

    async def _refuse(
        self, version: AdapterVersion, error: InvalidAdapter | AdapterUnavailable
    ) -> NoReturn:
        """Raises AdapterUnavailable, and MachineFault where this machine is to blame."""
        try:  # what the engine met may be a file that changed while it was read
            await self._on_disk(version, self._verify)
        except StoreError as damage:
            raise _fault(version, str(damage)) from error
        logger.warning("%s cannot serve: %s", version, error)
        code = error.code or "adapter_refused"

        def say_failed() -> None:
            with suppress(IllegalMove):  # it is LOADING already, from which alone it can fail
                self._registry.states.set(
                    version, AdapterState.LOADING, ACTOR, unless=AdapterState.READY
                )
            self._registry.states.set(version, AdapterState.FAILED, ACTOR, f"{code}: {error}")

        await self._say(say_failed, version)
        raise AdapterUnavailable(f"{version} cannot serve: {error}", code=code) from error

    async def _note_fault(self, version: AdapterVersion, fault: MachineFault) -> None:
        seconds = self._retries.failed(version.lora_id)
        self._refusals[version.lora_id] = fault
        logger.warning("%s is not loaded, next try in %.0f s: %s", version, seconds, fault.reason)
        was_ready = self._passed.pop(version.lora_id, None) is not None
        reason = f"{NOT_LOADED}: {fault.reason}"
        await self._say(self._not_loaded(version, reason, was_ready=was_ready), version)

    def _not_loaded(
        self, version: AdapterVersion, reason: str, *, was_ready: bool = False
    ) -> Callable[[], None]:
        return partial(
            self._registry.states.say_not_loaded, version, reason, ACTOR, was_ready=was_ready
        )

    async def _say(self, say: Callable[[], None], version: AdapterVersion) -> None:
        """What could not be told is told later, by `say_unsaid`."""
        try:
            await asyncio.to_thread(say)
        except (IllegalMove, VersionNotFound) as error:
            logger.info("%s has gone on without us: %s", version, error)
        except LoragateError as error:
            logger.warning("how %s stands could not be kept: %s", version, error)
            self._unsaid[version.lora_id] = say
        else:
            self._unsaid.pop(version.lora_id, None)

    def _again(self, version: AdapterVersion, refusal: AdapterUnavailable) -> AdapterUnavailable:
        """In the words for whoever asked, with the time to come again where that can help."""
        if not isinstance(refusal, MachineFault):
            return AdapterUnavailable(str(refusal), code=refusal.code)
        return MachineFault(
            f"{version} cannot be loaded on this server at the moment; try again shortly.",
            reason=refusal.reason,
            retry_after_seconds=max(1.0, self._retries.seconds_left(version.lora_id)),
        )


def _fault(version: AdapterVersion, reason: str) -> MachineFault:
    return MachineFault(f"{version} cannot be loaded here now: {reason}", reason=reason)


def _checks_at_once() -> int:
    """Two at least, so that one that is slow holds up no other; not all cores, which requests have
    to share with them.
    """
    return max(2, min(4, (os.cpu_count() or 1) // 2))


async def yield_to_engine(is_busy: Callable[[], bool]) -> None:
    """Between two pieces of work beside an engine; at once where nobody would notice.

    An engine on a few cores goes no faster than its slowest core, so a step gets longer by all that
    anything else computes in it, and by up to as much again: two pieces should not hit the same
    one. Smaller pieces with shorter pauses were worse: each time that another thread wakes, some of
    the hundreds of meetings of the engine's threads in a step take a slice longer. Threads of low
    priority were no better, for the same reason.
    """
    if is_busy():
        await asyncio.sleep(_STEP_SECONDS)
