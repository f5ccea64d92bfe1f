"""Who may go on now: per-tenant budgets, exact under concurrency; then the fair queue for all.

Everything runs on one event loop and nothing awaits between a check and its booking, so the sum of
what is admitted never passes a limit. Budgets are sliding windows of 60 seconds: in no minute,
wherever it starts, is more admitted than the limit.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from loragate.adapters.snapshot import Limits
from loragate.server.core import Route
from loragate.server.errors import Draining, RateLimited, RequestExceedsLimit
from loragate.server.fair_queue import FairQueue, Turn

WINDOW_SECONDS = 60.0
_LONGEST_HINT_SECONDS = 120.0  # OpenAI's clients give up at once on anything longer


@dataclass(slots=True, eq=False)
class _Booking:
    at: float
    tokens: int
    is_current: bool = True


@dataclass(slots=True)
class _Account:
    """One tenant's last minute. `requests` and `tokens` are the sums over `bookings`."""

    bookings: deque[_Booking] = field(default_factory=deque)
    tokens: int = 0
    running: int = 0

    def forget_before(self, moment: float) -> None:
        while self.bookings and self.bookings[0].at <= moment:
            gone = self.bookings.popleft()
            gone.is_current = False
            self.tokens -= gone.tokens


class Ticket:
    """A request's booking and its turn. `charge` counts what it gets of the engine, as it comes;
    `settle` says what it really used of its tenant's budget: the rest of the reserve comes back.
    """

    def __init__(self, account: _Account, booking: _Booking, turn: Turn) -> None:
        self._account = account
        self._booking = booking
        self.charge = turn.charge

    def settle(self, tokens: int) -> None:
        """`tokens` is the request's true number of prompt and completion tokens."""
        _settle(self._account, self._booking, tokens)


class Admission:
    """Budgets by tenant; then a turn in the queue, where all tenants wait."""

    def __init__(self, queue: FairQueue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._present = 0  # that run or wait
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        return self._queue.in_flight

    @property
    def queued(self) -> int:
        return self._queue.queued

    @asynccontextmanager
    async def admit(
        self, route: Route, limits: Limits, tokens: int, prompt_tokens: int = 0
    ) -> AsyncIterator[Ticket]:
        """Books one request of at most `tokens` tokens, waits for its turn, holds its place.

        Raises Draining, RateLimited, RequestExceedsLimit, Overloaded, or AdapterUnavailable where
        no slot came free for its adapter.
        """
        if self.is_draining:
            raise Draining(
                "The server is stopping; send the request again in a moment.",
                retry_after_seconds=1.0,
            )
        account = self._accounts.setdefault(route.tenant, _Account())
        self._check_limits(account, limits, tokens)
        self._queue.check_room(route)
        booking = _Booking(self._clock(), tokens)
        account.bookings.append(booking)
        account.tokens += tokens
        account.running += 1
        self._enter()
        try:
            try:
                turn = await self._queue.take(route, prompt_tokens)
            except BaseException:
                _settle(account, booking, 0)
                raise
            try:
                yield Ticket(account, booking, turn)
            finally:
                turn.end()
        finally:
            account.running -= 1
            self._leave()

    async def drained(self) -> None:
        """Returns once nothing runs and nothing waits."""
        await self._idle.wait()

    def _check_limits(self, account: _Account, limits: Limits, tokens: int) -> None:
        now = self._clock()
        account.forget_before(now - WINDOW_SECONDS)
        if limits.max_concurrent and account.running >= limits.max_concurrent:
            raise RateLimited(
                f"This tenant already has {account.running} requests running, its limit; "
                "wait until one has finished.",
                code="concurrency_limit_exceeded",
                retry_after_seconds=1.0,
            )
        requests = limits.requests_per_minute
        if requests and len(account.bookings) >= requests:
            oldest = account.bookings[len(account.bookings) - requests]
            raise RateLimited(
                f"This tenant's limit of {requests} requests a minute is reached.",
                code="rate_limit_exceeded",
                retry_after_seconds=oldest.at + WINDOW_SECONDS - now,
            )
        budget = limits.tokens_per_minute
        if budget and tokens > budget:
            raise RequestExceedsLimit(
                f"The request may use {tokens} tokens (prompt and max_tokens), more than this "
                f"tenant's {budget} a minute; shorten the prompt or lower max_tokens.",
            )
        if budget and account.tokens + tokens > budget:
            raise RateLimited(
                f"This tenant's limit of {budget} tokens a minute is reached: "
                f"{account.tokens} are used or reserved and the request may use {tokens}.",
                code="token_budget_exceeded",
                retry_after_seconds=self._seconds_until_free(
                    account, account.tokens + tokens - budget
                ),
            )

    def _seconds_until_free(self, account: _Account, tokens: int) -> float:
        now = self._clock()
        for booking in account.bookings:
            tokens -= booking.tokens
            if tokens <= 0:
                return booking.at + WINDOW_SECONDS - now
        return WINDOW_SECONDS

    def _enter(self) -> None:
        self._present += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._present -= 1
        if self._present == 0:
            self._idle.set()


def _settle(account: _Account, booking: _Booking, tokens: int) -> None:
    if booking.is_current:
        account.tokens += tokens - booking.tokens
    booking.tokens = tokens


def retry_after_header(seconds: float) -> int:
    """Whole seconds for `Retry-After`: never 0, never longer than clients are willing to wait."""
    return max(1, math.ceil(min(seconds, _LONGEST_HINT_SECONDS)))


def retry_after_ms_header(seconds: float) -> int:
    """The same in milliseconds, rounded up: a moment too early would be refused again."""
    return max(1, math.ceil(min(seconds, _LONGEST_HINT_SECONDS) * 1000))
