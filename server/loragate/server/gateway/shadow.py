"""Answers requests a second time by another arm, out of the client's sight and out of its way.

A shadow begins once the client has its answer. It does not wait in the queue and is charged to
nobody; it has a budget of its own, and gives way, at its next token, to whoever waits.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.manifest import Contract
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.clock import WallClock, wall_clock
from loragate.adapters.registry.trial_records import ShadowRow
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import ChatRequest, Delta, Request, Route
from loragate.server.engine.protocol import LAST_RANK, Engine, EngineRequest, LoadedAdapter
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.trial_router import Shadow, TrialAssignment
from loragate.server.gateway.prompting import PromptBuilder
from loragate.server.merged.models import MergedModels
from loragate.server.residency.residency import Residency

logger = logging.getLogger(__name__)
_MOST_WAITING = 16
_MORE_TOKENS = 16  # than the answer had: enough to see that a shadow goes on
_LONGEST_TEXT = 2000  # characters that are kept of an answer


@dataclass(slots=True)
class CapturedResponse:
    """An answer that is to be shadowed, as it came."""

    request: Request
    shadow: Shadow
    ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    is_whole: bool = False

    def add(self, delta: Delta) -> None:
        self.ids += delta.token_ids
        self.text.append(delta.text)
        self.is_whole = self.is_whole or delta.finish_reason is not None


class Shadows:
    """One at a time; `running` owns the task."""

    def __init__(
        self,
        merged: MergedModels,
        residency: Residency,
        builder: PromptBuilder,
        contract: Callable[[AdapterVersion | None], Contract],
        is_busy: Callable[[], bool],
        log: ObservationLog,
        tokens_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        now: WallClock = wall_clock,
    ) -> None:
        """`is_busy` says whether the engine has enough to do; then shadows are dropped."""
        self._merged = merged
        self._residency = residency
        self._builder = builder
        self._contract = contract
        self._is_busy = is_busy
        self._log = log
        self._budget = _Budget(tokens_per_minute, clock)
        self._clock = clock
        self._now = now
        self._waiting: deque[CapturedResponse] = deque()
        self._has_work = asyncio.Event()
        self.made = 0
        self.dropped = 0

    def capture(
        self, assignment: TrialAssignment | None, request: Request
    ) -> CapturedResponse | None:
        """Something to gather the answer in, where the request is to be shadowed."""
        shadow = None if assignment is None else assignment.shadow()
        return (
            CapturedResponse(request, shadow) if shadow is not None and _is_plain(request) else None
        )

    def submit(self, captured: CapturedResponse) -> None:
        """The answer has been given. Never waits."""
        if not captured.is_whole:
            return
        if len(self._waiting) >= _MOST_WAITING or self._is_busy():
            self.dropped += 1
        else:
            self._waiting.append(captured)
            self._has_work.set()

    @asynccontextmanager
    async def running(self, background: BackgroundTasks) -> AsyncIterator["Shadows"]:
        async with background.repeating("shadows", self._answer_all, wait=self._has_work.wait):
            yield self

    async def _answer_all(self) -> None:
        while self._waiting:
            captured, is_made = self._waiting.popleft(), False  # not again, should it fail
            try:
                is_made = await self._answer(captured)
            except LoragateError as error:
                logger.info("a shadow was not made: %s", error)
            finally:
                self.made += is_made
                self.dropped += not is_made
        self._has_work.clear()

    async def _answer(self, captured: CapturedResponse) -> bool:
        version = captured.shadow.arm.version
        tenant = captured.shadow.exposure.tenant
        prepared = await self._builder.prepare(captured.request, self._contract(version), tenant)
        ids = prepared.prompt_ids[0]
        most = (
            min(prepared.sampling.max_tokens or len(captured.ids), len(captured.ids)) + _MORE_TOKENS
        )
        if self._is_busy() or not self._budget.take(len(ids) + most):
            return False
        route = Route(tenant, version, captured.shadow.arm.mode)
        if not self._merged.has_room(route, len(ids) + most):
            return False
        async with self._acquire(route) as (engine, adapter):
            if engine is None:
                return False
            salt = f"{captured.shadow.exposure.tenant}:{captured.request.options.cache_salt}"
            sampling = replace(prepared.sampling, max_tokens=most)
            asked = EngineRequest(
                f"shadow-{uuid.uuid4().hex}", ids, sampling, adapter, salt, LAST_RANK
            )
            is_greedy = sampling.temperature == 0
            return await self._compare(captured, engine.generate(asked), is_greedy)

    async def _compare(
        self, captured: CapturedResponse, deltas: AsyncGenerator[Delta, None], is_greedy: bool
    ) -> bool:
        started, mine = self._clock(), CapturedResponse(captured.request, captured.shadow)
        async with aclosing(deltas):
            async for delta in deltas:
                mine.add(delta)
                if self._is_busy():
                    return False
        exposure = captured.shadow.exposure
        self._log.add(
            ShadowRow(
                exposure.id,
                captured.shadow.arm.id,
                exposure.step,
                self._now(),
                captured.shadow.answered_by,
                is_greedy,
                _same(captured.ids, mine.ids),
                len(captured.ids),
                len(mine.ids),
                self._clock() - started,
                "".join(captured.text)[:_LONGEST_TEXT],
                "".join(mine.text)[:_LONGEST_TEXT],
            )
        )
        return True

    @asynccontextmanager
    async def _acquire(
        self, route: Route
    ) -> AsyncIterator[tuple[Engine | None, LoadedAdapter | None]]:
        """No engine where the arm cannot answer now."""
        if self._merged.reachable(route) is not route:
            yield None, None
            return
        with self._merged.acquire(route) as engine:
            if route.version is None or not route.needs_slot:
                yield engine, None
                return
            async with self._residency.try_acquire(route.version) as adapter:
                yield None if adapter is None else engine, adapter


class _Budget:
    """So many tokens a minute, which come back evenly."""

    def __init__(self, tokens_per_minute: int, clock: Callable[[], float]) -> None:
        self._most = tokens_per_minute
        self._left = float(tokens_per_minute)
        self._clock = clock
        self._at = clock()

    def take(self, tokens: int) -> bool:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._most / 60)
        self._at = now
        if tokens > self._left:
            return False
        self._left -= tokens
        return True


def _is_plain(request: Request) -> bool:
    """One prompt, one answer, in words."""
    if isinstance(request, ChatRequest):
        return request.sampling.n == 1 and not request.tools
    return request.sampling.n == 1 and len(request.prompts) == 1


def _same(ours: list[int], theirs: list[int]) -> int:
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return position
    return min(len(ours), len(theirs))
