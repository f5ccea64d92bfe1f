"""Who may go on now: per-tenant budgets, exact under concurrency, and one bounded queue for all.

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
from loragate.server.errors import Draining, Overloaded, RateLimited, RequestExceedsLimit

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
    """A request's place. `settle` says what it really used; the rest of the reserve comes back."""

    def __init__(self, account: _Account, booking: _Booking) -> None:
        self._account = account
        self._booking = booking

    def settle(self, tokens: int) -> None:
        """`tokens` is the request's true number of prompt and completion tokens."""
        if self._booking.is_current:
            self._account.tokens += tokens - self._booking.tokens
        self._booking.tokens = tokens


class Admission:
    """Budgets by tenant; `max_in_flight` requests at once, `max_queued` waiting behind them."""

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_queued: int,
        queue_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._queue_timeout_seconds = queue_timeout_seconds
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._finished_at: deque[float] = deque(maxlen=64)
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        self.is_draining = False

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def admit(self, tenant: str, limits: Limits, tokens: int) -> AsyncIterator[Ticket]:
        """Books one request of at most `tokens` tokens, waits for its turn, holds its place.

        Raises Draining, RateLimited, RequestExceedsLimit, or Overloaded.
        """
        if self.is_draining:
            raise Draining(
                "The server is stopping; send the request again in a moment.",
                retry_after_seconds=1.0,
            )
        account = self._accounts.setdefault(tenant, _Account())
        self._check_limits(account, limits, tokens)
        self._check_queue()
        booking = _Booking(self._clock(), tokens)
        account.bookings.append(booking)
        account.tokens += tokens
        account.running += 1
        ticket = Ticket(account, booking)
        try:
            await self._take_turn(ticket)
            try:
                yield ticket
            finally:
                self._finished_at.append(self._clock())
                self._pass_turn()
        finally:
            account.running -= 1

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

    def _check_queue(self) -> None:
        if self.in_flight >= self._max_in_flight and self.queued >= self._max_queued:
            raise Overloaded(
                f"{self.in_flight} requests run and {self.queued} wait: the server is full.",
                retry_after_seconds=self._seconds_per_request() * max(1, self.queued),
            )

    def _seconds_per_request(self) -> float:
        """The measured rate at which requests finish lately; 1 second where nothing is known."""
        if len(self._finished_at) < 2:
            return 1.0
        span = self._finished_at[-1] - self._finished_at[0]
        return span / (len(self._finished_at) - 1)

    async def _take_turn(self, ticket: Ticket) -> None:
        self._idle.clear()
        if self.in_flight < self._max_in_flight and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._queue_timeout_seconds):
                await turn  # whoever finishes hands its place over, so in_flight stays as it is
        except TimeoutError:
            self._leave_queue(turn, ticket)
            raise Overloaded(
                f"The request waited {self._queue_timeout_seconds:g} s without getting its turn.",
                retry_after_seconds=self._seconds_per_request() * max(1, self.queued),
            ) from None
        except asyncio.CancelledError:
            self._leave_queue(turn, ticket)
            raise

    def _leave_queue(self, turn: asyncio.Future[None], ticket: Ticket) -> None:
        ticket.settle(0)
        if turn in self._waiting:
            self._waiting.remove(turn)
            self._note_if_idle()
        elif turn.done() and not turn.cancelled():
            self._pass_turn()  # the place came in the same moment: hand it on

    def _pass_turn(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1
        self._note_if_idle()

    def _note_if_idle(self) -> None:
        if self.in_flight == 0 and not self._waiting:
            self._idle.set()


def retry_after_header(seconds: float) -> int:
    """Whole seconds for `Retry-After`: never 0, never longer than clients are willing to wait."""
    return max(1, math.ceil(min(seconds, _LONGEST_HINT_SECONDS)))


def retry_after_ms_header(seconds: float) -> int:
    """The same in milliseconds, rounded up: a moment too early would be refused again."""
    return max(1, math.ceil(min(seconds, _LONGEST_HINT_SECONDS) * 1000))
