"""What people say of an answer, kept once and counted for the arm that gave it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from loragate.adapters.errors import RequestNotFound
from loragate.adapters.registry.clock import WallClock, wall_clock
from loragate.adapters.registry.trial_records import FeedbackRow
from loragate.server.concurrency.pools import in_pool
from loragate.server.errors import InvalidRequest, Overloaded
from loragate.server.experiments.metrics import check_feedback
from loragate.server.experiments.trial_router import TrialRouter

LONGEST_COMMENT = 2000  # characters
_MOST_UNDER_WAY = 16  # of one tenant
_FLUSH_EVERY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Feedback:
    """Of a request by its id: a metric's value, a comment, or both."""

    request_id: str
    metric: str
    value: float | None = None
    comment: str = ""


class FeedbackStore(Protocol):
    """Where it is kept: the registry. The call blocks."""

    def add_feedback(self, row: FeedbackRow) -> FeedbackRow | None: ...


class FeedbackService:
    """Takes feedback for all tenants."""

    def __init__(
        self,
        store: FeedbackStore,
        trial_router: TrialRouter,
        flush: Sequence[Callable[[], Awaitable[None]]],
        now: WallClock = wall_clock,
        pool: Executor | None = None,
    ) -> None:
        """`flush` writes what is known of requests and not in the store yet. The store is called
        in the threads of `pool`.
        """
        self._pool = pool
        self._store = store
        self._trial_router = trial_router
        self._flush = tuple(flush)
        self._now = now
        self._under_way = Counter[str]()  # by tenant
        self._one_flush = asyncio.Lock()
        self._flushed_at = -_FLUSH_EVERY_SECONDS

    async def give(self, tenant: str, said: Feedback) -> bool:
        """Whether it is new; the same said again changes nothing.

        Raises InvalidRequest; Overloaded where too much of the tenant's is being written;
        RequestNotFound, for another tenant's request too; FeedbackGiven where the request has
        another value of the metric.
        """
        check_feedback(said.metric, said.value, said.comment)
        if len(said.comment) > LONGEST_COMMENT:
            raise InvalidRequest(
                f"The comment has {len(said.comment)} characters; {LONGEST_COMMENT} are allowed.",
                param="comment",
            )
        row = FeedbackRow(
            tenant, said.request_id, said.metric, said.value, said.comment, None, self._now()
        )
        under_way = self._under_way
        if under_way[tenant] >= _MOST_UNDER_WAY:
            raise Overloaded(
                f"{under_way[tenant]} pieces of feedback of this tenant are being written; send it "
                "again in a moment.",
                retry_after_seconds=1.0,
            )
        under_way[tenant] += 1
        try:
            kept = await self._add(row)
        finally:
            under_way[tenant] -= 1
            if not under_way[tenant]:
                del under_way[tenant]
        if kept is not None:
            self._trial_router.record(kept)
        return kept is not None

    async def _add(self, row: FeedbackRow) -> FeedbackRow | None:
        try:
            return await in_pool(self._pool, self._store.add_feedback, row)
        except RequestNotFound:
            # Its answer may be so fresh that it is in no batch yet.
            await self._write_batches()
            return await in_pool(self._pool, self._store.add_feedback, row)

    async def _write_batches(self) -> None:
        """All who ask meanwhile share one writing: who asks for requests that never were must not
        turn batches into single rows.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        async with self._one_flush:
            if self._flushed_at > asked_at:
                return
            await asyncio.sleep(self._flushed_at + _FLUSH_EVERY_SECONDS - loop.time())
            self._flushed_at = loop.time()
            for flush in self._flush:
                await flush()
