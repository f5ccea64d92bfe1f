"""Who may go on now: per-tenant budgets, exact under concurrency; then the fair queue for all.

A request comes in two steps. `arrive` needs its headers alone and counts it, before its body costs
anything; `admit` books its tokens, which are known once its body is, and waits in the queue.

Everything runs on one event loop and nothing awaits between a check and its booking, so the sum of
what is admitted never passes a limit. Budgets are sliding windows of 60 seconds: in no minute,
wherever it starts, is more admitted than the limit.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from loragate.adapters.registry.snapshot import Limits
from loragate.server.admission.fair_queue import FairQueue, QueueGrant
from loragate.server.core import Caller, Route
from loragate.server.errors import Draining, RateLimited, RequestExceedsLimit

WINDOW_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class _Booking:
    at: float
    tokens: int
    is_current: bool = True


@dataclass(slots=True)
class _Account:
    """One tenant's last minute: when requests arrived, and what was booked; `tokens` is the sum
    over `bookings`.
    """

    arrivals: deque[float] = field(default_factory=deque)
    bookings: deque[_Booking] = field(default_factory=deque)
    tokens: int = 0
    running: int = 0

    @property
    def is_needed(self) -> bool:
        return bool(self.running or self.arrivals or self.bookings)

    def forget_before(self, moment: float) -> None:
        while self.arrivals and self.arrivals[0] <= moment:
            self.arrivals.popleft()
        while self.bookings and self.bookings[0].at <= moment:
            gone = self.bookings.popleft()
            gone.is_current = False
            self.tokens -= gone.tokens


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that was let in by its headers: counted in its tenant's minute, and as running
    until it is left. Of `Admission.arrive`; nobody else makes one.
    """

    caller: Caller
    tenant: str
    limits: Limits
    _account: _Account


class Reservation:
    """A request's booked tokens and its grant of the queue, while `Admission.admit` lasts."""

    def __init__(
        self, queue: FairQueue, account: _Account, booking: _Booking, prompt_tokens: int
    ) -> None:
        self._queue = queue
        self._account = account
        self._booking = booking
        self._prompt_tokens = prompt_tokens
        self._grant: QueueGrant | None = None

    async def acquire_grant(self, route: Route) -> None:
        """Waits for a grant by this route; gives back the one that it has, by another route.

        Raises Overloaded, or AdapterUnavailable where no slot came free for its adapter.
        """
        self.release_grant()
        self._grant = await self._queue.take(route, self._prompt_tokens)

    def release_grant(self) -> None:
        if self._grant is not None:
            self._grant.end()
            self._grant = None

    def permit(self) -> AbstractAsyncContextManager[int]:
        """See `QueueGrant.permit`."""
        assert self._grant is not None, "the request has no grant"
        return self._grant.permit()

    def charge(self, tokens: int) -> None:
        """Counts generated tokens for the queue, as they come."""
        if self._grant is not None:
            self._grant.charge(tokens)

    def settle(self, tokens: int) -> None:
        """`tokens` is the request's true number of prompt and completion tokens; the rest of what
        was booked comes back to its tenant's budget.
        """
        _settle(self._account, self._booking, tokens)


class Admission:
    """Who comes in, by tenant; then budgets; then the queue, where all tenants wait."""

    def __init__(self, queue: FairQueue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # who came last is last
        self._present = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        """Requests that hold a grant of the queue."""
        return self._queue.in_flight

    @property
    def queued(self) -> int:
        return self._queue.queued

    @property
    def present(self) -> int:
        """Requests that have arrived and are not over."""
        return self._present

    @property
    def known_tenants(self) -> int:
        """Of how many tenants something is remembered."""
        return len(self._accounts)

    @contextmanager
    def arrive(self, caller: Caller, tenant: str, limits: Limits) -> Iterator[Arrival]:
        """Counts one request of the tenant, and counts it as running until the context is left.

        Nothing of the request but its headers has to be known. Raises Draining or RateLimited, and
        then counts nothing: who is refused here gets in as soon as the window has moved on.
        """
        if self.is_draining:
            raise Draining(
                "The server is stopping; send the request again in a moment.",
                retry_after_seconds=1.0,
            )
        now = self._clock()
        self._forget_idle(now)
        account = self._accounts.setdefault(tenant, _Account())
        self._accounts.move_to_end(tenant)
        account.forget_before(now - WINDOW_SECONDS)
        self._check_arrival(account, limits, now)
        account.arrivals.append(now)
        account.running += 1
        self._enter()
        try:
            yield Arrival(caller, tenant, limits, account)
        finally:
            account.running -= 1
            self._leave()

    @asynccontextmanager
    async def admit(
        self, arrival: Arrival, route: Route, tokens: int, prompt_tokens: int = 0
    ) -> AsyncIterator[Reservation]:
        """Books `tokens`, the most that the request may use, and waits for the queue's grant.

        On leaving, all its permits have to be given back.

        Raises RateLimited, RequestExceedsLimit, Overloaded, or AdapterUnavailable where no slot
        came free for its adapter.
        """
        account = arrival._account
        now = self._clock()
        account.forget_before(now - WINDOW_SECONDS)
        self._check_tokens(account, arrival.limits, tokens, now)
        self._queue.check_room(route)
        booking = _Booking(now, tokens)
        account.bookings.append(booking)
        account.tokens += tokens
        reservation = Reservation(self._queue, account, booking, prompt_tokens)
        try:
            await reservation.acquire_grant(route)
        except BaseException:
            reservation.settle(0)
            raise
        try:
            yield reservation
        finally:
            reservation.release_grant()

    async def drained(self) -> None:
        """Returns once nothing runs and nothing waits."""
        await self._idle.wait()

    def _check_arrival(self, account: _Account, limits: Limits, now: float) -> None:
        if limits.max_concurrent and account.running >= limits.max_concurrent:
            raise RateLimited(
                f"This tenant already has {account.running} requests running, its limit; "
                "wait until one has finished.",
                code="concurrency_limit_exceeded",
                retry_after_seconds=1.0,
            )
        requests = limits.requests_per_minute
        if requests and len(account.arrivals) >= requests:
            oldest = account.arrivals[len(account.arrivals) - requests]
            raise RateLimited(
                f"This tenant's limit of {requests} requests a minute is reached.",
                code="rate_limit_exceeded",
                retry_after_seconds=oldest + WINDOW_SECONDS - now,
            )

    def _check_tokens(self, account: _Account, limits: Limits, tokens: int, now: float) -> None:
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
                retry_after_seconds=_seconds_until_free(
                    account, account.tokens + tokens - budget, now
                ),
            )

    def _forget_idle(self, now: float) -> None:
        """Looks at two accounts for each that may come, so there are never many idle ones."""
        for _ in range(min(2, len(self._accounts))):
            tenant, account = next(iter(self._accounts.items()))
            account.forget_before(now - WINDOW_SECONDS)
            if account.is_needed:
                self._accounts.move_to_end(tenant)
            else:
                del self._accounts[tenant]

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


def _seconds_until_free(account: _Account, tokens: int, now: float) -> float:
    for booking in account.bookings:
        tokens -= booking.tokens
        if tokens <= 0:
            return booking.at + WINDOW_SECONDS - now
    return WINDOW_SECONDS
