"""What people say of an answer, kept once and counted for the arm that gave it."""

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from loragate.adapters.errors import RequestNotFound
from loragate.adapters.trial_records import FeedbackRow
from loragate.server.errors import InvalidRequest
from loragate.server.experiments.metrics import check_feedback
from loragate.server.experiments.places import Clock, Places, wall_clock
from loragate.server.pools import in_pool

LONGEST_COMMENT = 2000  # characters


@dataclass(frozen=True, slots=True)
class Feedback:
    """Of a request by its id: a metric's value, a comment, or both."""

    request_id: str
    metric: str
    value: float | None = None
    comment: str = ""


class FeedbackLedger(Protocol):
    """Where it is kept: the registry. The call blocks."""

    def add_feedback(self, row: FeedbackRow) -> FeedbackRow | None: ...


class FeedbackDesk:
    """Takes feedback for all tenants."""

    def __init__(
        self,
        ledger: FeedbackLedger,
        places: Places,
        flush: Sequence[Callable[[], Awaitable[None]]],
        now: Clock = wall_clock,
        pool: Executor | None = None,
    ) -> None:
        """`flush` writes what is known of requests and not in the ledger yet. The ledger is called
        in the threads of `pool`.
        """
        self._pool = pool
        self._ledger = ledger
        self._places = places
        self._flush = tuple(flush)
        self._now = now

    async def give(self, tenant: str, said: Feedback) -> bool:
        """Whether it is new; the same said again changes nothing.

        Raises InvalidRequest; RequestNotFound, for another tenant's request too; FeedbackGiven
        where the request has another value of the metric.
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
        try:
            kept = await in_pool(self._pool, self._ledger.add_feedback, row)
        except RequestNotFound:
            # Its answer may be so fresh that it is in no batch yet.
            for flush in self._flush:
                await flush()
            kept = await in_pool(self._pool, self._ledger.add_feedback, row)
        if kept is not None:
            self._places.hear(kept)
        return kept is not None
