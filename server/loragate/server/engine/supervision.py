"""An engine that comes back by itself: notices that the core died and starts another.

Whatever an engine held dies with it. So each one is a run of its own: calls of a run that is over
end with EngineDead, and nothing that they did or left undone is carried into the next.
"""

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from typing import Literal

from loragate.server.concurrency.retries import Backoff
from loragate.server.core import ChatRequest, Delta
from loragate.server.engine.protocol import (
    Engine,
    EngineRequest,
    LoadedAdapter,
    ReasoningSession,
    ServedModel,
    ToolSession,
)
from loragate.server.errors import EngineDead

logger = logging.getLogger(__name__)

EngineState = Literal["alive", "restarting", "dead"]
StartEngine = Callable[[], AbstractAsyncContextManager[Engine]]

_POLL_SECONDS = 0.1
_SOONEST_RETRY_SECONDS = 1.0
_IDLE_SECONDS = 5.0
_TELL_SECONDS = 10.0  # a listener


@dataclass(slots=True)
class EngineRun:
    """One engine from its start to its death."""

    engine: Engine
    loaded: set[int] = field(default_factory=set)  # lora ids
    may_hold: set[int] = field(default_factory=set)  # lora ids: loads that failed half-way too
    calls: set[asyncio.Future[None]] = field(default_factory=set)
    has_failed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_alive(self) -> bool:
        return self.engine.is_alive and not self.has_failed.is_set()

    def end(self) -> None:
        self.has_failed.set()
        # A core that is gone answers nothing, so what waits for its answer would wait for ever.
        for call in self.calls:
            call.cancel()


class SupervisedEngine:
    """An `Engine` around engines that die: one at a time, the next one with an empty memory."""

    def __init__(
        self,
        start: StartEngine,
        backoff: Backoff,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._start = start
        self._backoff = backoff
        self._clock = clock
        self._sleep = sleep
        self._run: EngineRun | None = None
        self._model: ServedModel | None = None
        self._first_start = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None
        self._start_seconds = 0.0  # what the last start took
        self._expected_back = 0.0  # by the clock
        self._restart_listeners: list[Callable[[], object]] = []
        self._change_listeners: list[Callable[[EngineState], Awaitable[None]]] = []
        self._generating = 0
        self.generation = 0

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        start: StartEngine,
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> AsyncIterator["SupervisedEngine"]:
        """Starts the first engine, whose failure propagates, and keeps one until it is left.

        `start` makes a context that starts an engine on entering and closes it on leaving. `clock`
        and `sleep` are in seconds.
        """
        engine = cls(start, backoff or Backoff(), clock, sleep)
        supervision = asyncio.create_task(engine._supervise(), name="engine supervision")
        engine._supervision = supervision
        started = asyncio.create_task(engine._first_start.wait())
        try:
            await asyncio.wait({supervision, started}, return_when=asyncio.FIRST_COMPLETED)
            if supervision.done():
                supervision.result()  # raises why there is no first engine
            supervision.add_done_callback(_log_end)
            yield engine
        finally:
            started.cancel()
            supervision.cancel()
            await asyncio.wait({supervision})
            if not supervision.cancelled():
                supervision.result()

    @property
    def model(self) -> ServedModel:
        """The model as the last engine held it; it stays while there is none."""
        assert self._model is not None, "the engine has not started"
        return self._model

    @property
    def is_alive(self) -> bool:
        return self._run is not None and self._run.is_alive

    @property
    def state(self) -> EngineState:
        """`dead` only where the supervision itself has ended: then nothing comes back."""
        if self._supervision is None or self._supervision.done():
            return "dead"
        return "alive" if self.is_alive else "restarting"

    @property
    def retry_after_seconds(self) -> float:
        """When the next engine may be there, by what the last start took."""
        back = self._start_seconds if self._run else self._expected_back - self._clock()
        return max(_SOONEST_RETRY_SECONDS, back)

    @property
    def memory_bytes(self) -> int:
        run = self._run  # read once: threads ask, and the loop may end it meanwhile
        return 0 if run is None else run.engine.memory_bytes

    def is_generating(self) -> bool:
        """Whether any answer is under way, which other work would hold up."""
        return self._generating > 0

    def on_restart(self, forget: Callable[[], object]) -> None:
        """Calls back at each restart, before anyone can reach the new engine, which is empty."""
        self._restart_listeners.append(forget)

    def on_change(self, tell: Callable[[EngineState], Awaitable[None]]) -> None:
        """Calls back whenever the engine has died or is there again."""
        self._change_listeners.append(tell)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        run = self._current_run()
        if request.adapter is not None and request.adapter.version.lora_id not in run.loaded:
            raise self._engine_dead("The engine restarted and no longer holds the adapter")
        self._generating += 1
        try:
            async with aclosing(run.engine.generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        except EngineDead:
            run.has_failed.set()
            raise self._engine_dead("The engine died while it worked on this request") from None
        finally:
            self._generating -= 1

    async def load(self, adapter: LoadedAdapter) -> None:
        run = self._current_run()
        run.may_hold.add(adapter.version.lora_id)
        if not await self._outlives(run, run.engine.load(adapter)):
            raise self._engine_dead(f"The engine died while it loaded {adapter.version}")
        run.loaded.add(adapter.version.lora_id)

    async def unload(self, adapter: LoadedAdapter) -> None:
        """Done as well where the engine that held the adapter has died: so have its weights."""
        run, lora_id = self._run, adapter.version.lora_id
        if run is not None and lora_id in run.may_hold:
            run.loaded.discard(lora_id)
            await self._outlives(run, run.engine.unload(adapter))
            run.may_hold.discard(lora_id)  # not before: what fails is asked again

    async def check_slots(self) -> None:
        run = self._run
        if run is not None and run.is_alive:
            await self._outlives(run, run.engine.check_slots())

    async def idle(self) -> None:
        """Returns when no answer is under way, which other work would hold up; not at once."""
        await self._sleep(_IDLE_SECONDS)
        while self.is_generating():
            await self._sleep(_IDLE_SECONDS)

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> ToolSession:
        return self._current_run().engine.tools(request, prompt_ids)

    def reasoning(
        self, template_kwargs: Mapping[str, object], prompt_ids: Sequence[int]
    ) -> ReasoningSession | None:
        return self._current_run().engine.reasoning(template_kwargs, prompt_ids)

    def _current_run(self) -> EngineRun:
        if self._run is None or not self._run.is_alive:
            raise self._engine_dead("The engine is down and restarts by itself")
        return self._run

    def _engine_dead(self, reason: str) -> EngineDead:
        return EngineDead(
            f"{reason}; try again shortly.", retry_after_seconds=self.retry_after_seconds
        )

    async def _outlives(self, run: EngineRun, coroutine: Coroutine[None, None, None]) -> bool:
        """Awaits a call; false where the engine died first, whatever the call then said."""
        call = asyncio.ensure_future(coroutine)
        run.calls.add(call)
        try:
            await asyncio.wait({call})
        finally:
            run.calls.discard(call)
            call.cancel()  # does nothing but where our own caller has left
        error = None if call.cancelled() else call.exception()
        if isinstance(error, EngineDead):
            run.has_failed.set()
        if run.has_failed.is_set():
            return False
        call.result()
        return True

    async def _supervise(self) -> None:
        delay: float | None = None
        while True:
            uptime = 0.0
            closing = AsyncExitStack()
            began = self._clock()
            self._expected_back = began + self._start_seconds
            try:
                engine = await closing.enter_async_context(self._start())
            except Exception:  # a start fails in ways that nobody can list; the next may succeed
                if not self._first_start.is_set():
                    raise
                logger.exception("the engine did not start")
            else:
                try:
                    uptime = await self._live(engine, began)
                except Exception:  # such as an engine that cannot say what it serves
                    if not self._first_start.is_set():
                        raise
                    logger.exception("the engine was given up")
                finally:
                    await _close(closing)
            delay = self._backoff.following(delay, uptime)
            self._expected_back = self._clock() + delay + self._start_seconds
            logger.warning("starting the engine again in %.1f s", delay)
            await self._sleep(delay)

    async def _live(self, engine: Engine, began: float) -> float:
        """Gives the engine to callers until it is dead; returns its run's seconds."""
        started_at = self._clock()
        self._start_seconds = started_at - began
        run = self._begin(engine)
        try:
            await self._tell()
            await _until_dead(run)
        finally:
            self._run = None
            run.end()
        uptime = self._clock() - started_at
        self._expected_back = self._clock() + self._start_seconds
        logger.error("the engine died after %.0f s", uptime)
        await self._tell()
        return uptime

    def _begin(self, engine: Engine) -> EngineRun:
        """From here on requests reach the engine; what its predecessor held is forgotten before."""
        self.generation += 1
        if self.generation > 1:
            for forget in self._restart_listeners:
                try:
                    forget()
                except Exception:  # whoever listens must not keep the engine from coming back
                    logger.exception("a listener failed as the engine came back")
            logger.warning(
                "the engine is back after %.1f s, start %d", self._start_seconds, self.generation
            )
        self._model = engine.model
        self._run = EngineRun(engine)
        self._first_start.set()
        return self._run

    async def _tell(self) -> None:
        for tell in self._change_listeners:
            try:
                async with asyncio.timeout(_TELL_SECONDS):
                    await tell("alive" if self.is_alive else "restarting")
            # Whoever listens must not end or hold up the supervision: without it, no engine that
            # dies ever comes back. A listener may also raise the cancellation of what it awaited.
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise
                logger.exception("a listener failed to hear that the engine has changed")


async def _until_dead(run: EngineRun) -> None:
    while run.is_alive:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await run.has_failed.wait()


async def _close(closing: AsyncExitStack) -> None:
    try:
        await closing.aclose()
    except Exception:  # what is left of a dead engine must not keep the next one from starting
        logger.exception("the engine did not close")


def _log_end(supervision: asyncio.Task[None]) -> None:
    if not supervision.cancelled():
        logger.critical("the engine is no longer supervised", exc_info=supervision.exception())
