import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.adapters.registry.snapshot import Limits
from loragate.server.admission.admission import (
    WINDOW_SECONDS,
    Admission,
    Reservation,
)
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.config import LimitsConfig
from loragate.server.core import Caller, Delta, Route
from loragate.server.engine.protocol import EngineRequest
from loragate.server.errors import (
    Draining,
    InvalidRequest,
    Overloaded,
    RateLimited,
    RequestExceedsLimit,
)
from loragate.server.http.failures import retry_after_header, retry_after_ms_header
from support.clock import Clock
from support.engines.echo_engine import EchoEngine
from support.server.small_server import Served, ServeWith, on_a_socket
from support.waiting import until

FREE = Limits()
ACME = Route("acme")


def admission(
    clock: Clock | None = None,
    *,
    max_in_flight: int = 100,
    max_queued: int = 100,
    queue_timeout_seconds: float = 5.0,
) -> Admission:
    clock = clock or Clock()
    queue = FairQueue(
        permits=max_in_flight,
        slots=1,
        bounds=QueueBounds(max_queued, max_queued, queue_timeout_seconds),
        turn_seconds=0,
        clock=clock,
    )
    return Admission(queue, clock)


@asynccontextmanager
async def admitted(
    gate: Admission, route: Route, limits: Limits, tokens: int
) -> AsyncIterator[Reservation]:
    """A request whole: it arrives, is booked, and takes its turn."""
    with gate.arrive(Caller("key", "req-1", "http"), route.tenant, limits) as arrival:
        async with gate.admit(arrival, route, tokens) as reservation:
            yield reservation


class Requests:
    """Requests that stay admitted until told to finish; `admitted` has them in their order."""

    def __init__(self, gate: Admission) -> None:
        self.gate = gate
        self.admitted: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def start(self, name: str, tokens: int = 1, limits: Limits = FREE) -> None:
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, tokens, limits))
        await asyncio.sleep(0)  # it is admitted, queued or refused before it first waits

    async def _run(self, name: str, tokens: int, limits: Limits) -> None:
        async with admitted(self.gate, ACME, limits, tokens):
            self.admitted.append(name)
            await self.ends[name].wait()

    async def finish(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.tasks[name]


@asynccontextmanager
async def requests(gate: Admission) -> AsyncIterator[Requests]:
    some = Requests(gate)
    try:
        yield some
    finally:
        for task in some.tasks.values():
            task.cancel()
        await asyncio.gather(*some.tasks.values(), return_exceptions=True)


# ---- exactness


@dataclass
class Booked:
    at: float
    tokens: int


@dataclass
class Model:
    """What the limits mean, kept naively: every request that was let in, and how many run."""

    limits: Limits
    booked: list[Booked] = field(default_factory=list)
    running: int = 0

    def check(self) -> None:
        rpm, tpm = self.limits.requests_per_minute, self.limits.tokens_per_minute
        assert self.running <= (self.limits.max_concurrent or self.running)
        for first in self.booked:  # every window that could be the fullest starts at a request
            window = [b for b in self.booked if first.at <= b.at < first.at + WINDOW_SECONDS]
            assert len(window) <= (rpm or len(window))
            spent = sum(b.tokens for b in window)
            assert spent <= (tpm or spent)

    def keeps_out(self, now: float) -> bool:
        rpm = self.limits.requests_per_minute
        return (
            self.limits.max_concurrent is not None and self.running >= self.limits.max_concurrent
        ) or (rpm is not None and len(self._recent(now)) >= rpm)

    def has_no_tokens_for(self, now: float, tokens: int) -> bool:
        tpm = self.limits.tokens_per_minute
        return tpm is not None and sum(b.tokens for b in self._recent(now)) + tokens > tpm

    def _recent(self, now: float) -> list[Booked]:
        return [b for b in self.booked if b.at > now - WINDOW_SECONDS]


some_limit = st.none() | st.integers(1, 6)
limits_strategy = st.builds(
    Limits,
    requests_per_minute=some_limit,
    tokens_per_minute=st.none() | st.integers(5, 40),
    max_concurrent=some_limit,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(1, 20)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 7.5, 30.0, 60.0])),
        st.tuples(st.just("finish"), st.floats(0, 1)),
        st.tuples(st.just("fail"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(limits=limits_strategy, steps=steps)
def test_no_minute_ever_holds_more_than_a_limit_and_nothing_is_refused_without_need(
    limits: Limits, steps: list[tuple[str, float]]
) -> None:
    asyncio.run(_follow(limits, steps))


async def _follow(limits: Limits, steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    gate = admission(clock)
    model = Model(limits)
    open_: list[tuple[AsyncExitStack, Reservation, Booked]] = []
    for step, amount in steps:
        if step == "wait":
            clock.now += amount
        elif step == "admit":
            stack, tokens = AsyncExitStack(), int(amount)
            is_kept_out = model.keeps_out(clock.now)
            is_refused = is_kept_out or model.has_no_tokens_for(clock.now, tokens)
            try:
                reservation = await stack.enter_async_context(admitted(gate, ACME, limits, tokens))
            except (RateLimited, RequestExceedsLimit):
                assert is_refused
                if not is_kept_out:  # it came in, and counts as a request
                    model.booked.append(Booked(clock.now, 0))
                continue
            assert not is_refused
            model.booked.append(Booked(clock.now, tokens))
            model.running += 1
            open_.append((stack, reservation, model.booked[-1]))
        elif open_:
            stack, reservation, booked = open_.pop(0)
            used = int(booked.tokens * amount)
            reservation.settle(used)
            booked.tokens = used
            await stack.aclose()
            model.running -= 1
        model.check()
    for stack, _, _ in open_:
        await stack.aclose()
    assert gate.in_flight == 0


async def test_of_many_requests_at_once_exactly_as_many_as_the_limits_allow_get_in() -> None:
    gate = admission()
    limits = Limits(requests_per_minute=50, tokens_per_minute=300, max_concurrent=40)
    outcomes: list[str] = []

    async def ask() -> None:
        try:
            async with admitted(gate, ACME, limits, 10) as reservation:
                await asyncio.sleep(0)
                reservation.settle(10)
                outcomes.append("in")
        except RateLimited as error:
            outcomes.append(error.code or "")

    await asyncio.gather(*(ask() for _ in range(200)))
    # 300 tokens are 30 requests of 10; those refused for their tokens have come in and count.
    counted = {"in": 30, "token_budget_exceeded": 20, "rate_limit_exceeded": 150}
    assert Counter(outcomes) == counted


async def test_one_tenant_s_use_is_not_another_s() -> None:
    gate = admission()
    limits = Limits(requests_per_minute=1)
    async with admitted(gate, ACME, limits, 1), admitted(gate, Route("globex"), limits, 1):
        assert gate.in_flight == 2


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(requests_per_minute=1), "rate_limit_exceeded"),
        (Limits(tokens_per_minute=10), "token_budget_exceeded"),
        (Limits(max_concurrent=1), "concurrency_limit_exceeded"),
    ],
)
async def test_each_limit_is_refused_by_its_own_name(limits: Limits, code: str) -> None:
    gate = admission()
    async with admitted(gate, ACME, limits, 10):
        with pytest.raises(RateLimited) as refusal:
            async with admitted(gate, ACME, limits, 10):
                pass
    assert refusal.value.code == code


@pytest.mark.parametrize(
    "limits", [Limits(requests_per_minute=2), Limits(tokens_per_minute=20)], ids=["rpm", "tpm"]
)
async def test_a_client_that_waits_as_long_as_it_was_told_gets_in_and_not_before(
    limits: Limits,
) -> None:
    clock = Clock()
    gate = admission(clock)
    for _ in range(2):
        async with admitted(gate, ACME, limits, 10) as reservation:
            reservation.settle(10)
        clock.now += 13.0
    with pytest.raises(RateLimited) as refusal:
        async with admitted(gate, ACME, limits, 10):
            pass
    hint = refusal.value.retry_after_seconds or 0
    assert hint == pytest.approx(60 - 26)
    clock.now += hint - 0.01
    with pytest.raises(RateLimited):
        async with admitted(gate, ACME, limits, 10):
            pass
    clock.now += 0.01
    async with admitted(gate, ACME, limits, 10):
        assert gate.in_flight == 1


async def test_a_request_larger_than_the_whole_budget_gets_no_hint_to_try_again() -> None:
    with pytest.raises(RequestExceedsLimit, match="11 tokens") as refusal:
        async with admitted(admission(), ACME, Limits(tokens_per_minute=10), 11):
            pass
    assert refusal.value.retry_after_seconds is None


async def test_what_a_request_reserved_and_did_not_use_comes_back() -> None:
    gate = admission()
    limits = Limits(tokens_per_minute=100)
    async with admitted(gate, ACME, limits, 100) as reservation:
        reservation.settle(30)
    async with admitted(gate, ACME, limits, 70):
        with pytest.raises(RateLimited):
            async with admitted(gate, ACME, limits, 1):
                pass


async def test_a_request_that_settles_after_its_minute_does_not_spoil_the_next() -> None:
    clock = Clock()
    gate = admission(clock)
    limits = Limits(tokens_per_minute=100)
    async with admitted(gate, ACME, limits, 100) as slow:
        clock.now += 61
        async with admitted(gate, ACME, limits, 100) as reservation:
            slow.settle(5)
            reservation.settle(60)
        async with admitted(gate, ACME, limits, 40):
            pass
        with pytest.raises(RateLimited):
            async with admitted(gate, ACME, limits, 61):
                pass


async def test_an_error_inside_gives_the_place_back() -> None:
    gate = admission()
    limits = Limits(max_concurrent=1)
    with pytest.raises(KeyError):
        async with admitted(gate, ACME, limits, 1):
            raise KeyError
    async with admitted(gate, ACME, limits, 1):
        assert gate.in_flight == 1


async def test_a_request_runs_from_its_arrival_on_and_counts_though_it_asks_for_nothing() -> None:
    gate = admission()
    limits = Limits(requests_per_minute=2, max_concurrent=1)
    caller = Caller("key", "req-1", "http")
    with gate.arrive(caller, "acme", limits):
        with pytest.raises(RateLimited) as refusal, gate.arrive(caller, "acme", limits):
            pass
        assert refusal.value.code == "concurrency_limit_exceeded"
    with gate.arrive(caller, "acme", limits):
        pass
    with pytest.raises(RateLimited) as refusal, gate.arrive(caller, "acme", limits):
        pass
    assert refusal.value.code == "rate_limit_exceeded"


async def test_tenants_that_have_left_are_forgotten_once_their_minute_is_over() -> None:
    clock = Clock()
    gate = admission(clock)
    for number in range(500):
        async with admitted(gate, Route(f"tenant-{number}"), FREE, 1):
            clock.now += 1.0
    assert gate.known_tenants < 2 * WINDOW_SECONDS
    async with admitted(gate, ACME, FREE, 1):
        clock.now += 2 * WINDOW_SECONDS
        for number in range(500):
            async with admitted(gate, Route(f"tenant-{number}"), FREE, 1):
                clock.now += 1.0
        with (
            pytest.raises(RateLimited),
            gate.arrive(Caller("key", "req-1", "http"), "acme", Limits(max_concurrent=1)),
        ):
            pass  # who is running is remembered, however long ago it came


# ---- queue


async def test_requests_that_wait_are_served_in_their_order() -> None:
    gate = admission(max_in_flight=1)
    async with requests(gate) as some:
        for name in ("a", "b", "c", "d"):
            await some.start(name)
        assert (gate.in_flight, gate.queued) == (1, 3)
        for name in ("a", "b", "c"):
            await some.finish(name)
        await until(lambda: len(some.admitted) == 4)
        assert some.admitted == ["a", "b", "c", "d"]
        assert gate.in_flight == 1


async def test_a_newcomer_does_not_overtake_whoever_was_just_called() -> None:
    gate = admission(max_in_flight=1)
    async with requests(gate) as some:
        await some.start("a")
        await some.start("b")
        end = asyncio.create_task(some.finish("a"))
        await asyncio.sleep(0)
        await some.start("c")
        await end
        await until(lambda: some.admitted == ["a", "b"])
        assert gate.in_flight == 1


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    clock = Clock()
    gate = admission(clock, max_in_flight=1, max_queued=2)
    async with requests(gate) as some:
        for number in range(3):  # requests take two seconds each
            await some.start(f"before-{number}")
            clock.now += 2.0
            await some.finish(f"before-{number}")
        for name in ("a", "b", "c"):
            await some.start(name)
        with pytest.raises(Overloaded, match="full") as refusal:
            async with admitted(gate, ACME, FREE, 1):
                pass
        assert refusal.value.retry_after_seconds == pytest.approx(4.0)
        assert gate.queued == 2


async def test_with_no_queue_a_busy_server_refuses() -> None:
    gate = admission(max_in_flight=1, max_queued=0)
    async with admitted(gate, ACME, FREE, 1):
        with pytest.raises(Overloaded):
            async with admitted(gate, ACME, FREE, 1):
                pass
    async with admitted(gate, ACME, FREE, 1):
        assert gate.in_flight == 1


async def test_who_waits_too_long_is_sent_away_and_gets_its_tokens_back() -> None:
    gate = admission(max_in_flight=1, queue_timeout_seconds=0.01)
    limits = Limits(tokens_per_minute=100, max_concurrent=2)
    async with admitted(gate, ACME, limits, 50):
        with pytest.raises(Overloaded, match=r"waited 0\.01 s") as refusal:
            async with admitted(gate, ACME, limits, 50):
                pass
        assert refusal.value.retry_after_seconds
        assert gate.queued == 0
    async with admitted(gate, ACME, limits, 50):
        assert gate.in_flight == 1


async def test_who_leaves_the_queue_frees_its_place_in_it_and_its_tokens() -> None:
    gate = admission(max_in_flight=1)
    limits = Limits(tokens_per_minute=100, max_concurrent=2)
    async with requests(gate) as some:
        await some.start("a", 50, limits)
        await some.start("b", 50, limits)
        await some.cancel("b")
        assert gate.queued == 0
        await some.start("c", 50, limits)
        assert gate.queued == 1
        await some.finish("a")
        await until(lambda: some.admitted == ["a", "c"])


async def test_who_leaves_in_the_moment_of_being_called_hands_the_place_on() -> None:
    gate = admission(max_in_flight=1)
    async with requests(gate) as some:
        async with admitted(gate, ACME, FREE, 1):
            await some.start("b")
            await some.start("c")
        assert gate.queued == 1  # b has been called and has not woken yet
        some.tasks["b"].cancel()
        await until(lambda: some.admitted == ["c"])
        await some.finish("c")
    assert gate.in_flight == 0


async def test_who_was_cancelled_before_being_called_is_passed_over() -> None:
    gate = admission(max_in_flight=1)
    async with requests(gate) as some:
        for name in ("a", "b", "c"):
            await some.start(name)
        some.tasks["b"].cancel()
        await some.finish("a")
        await until(lambda: some.admitted == ["a", "c"])
        await some.finish("c")
    assert gate.in_flight == 0


schedule = st.lists(st.tuples(st.sampled_from(["start", "finish", "cancel"]), st.integers(0, 9)))


@settings(max_examples=100, deadline=None)
@given(schedule=schedule, permits=st.integers(1, 3), queue=st.integers(0, 3))
def test_whoever_comes_goes_or_gives_up_no_place_is_lost_or_given_twice(
    schedule: list[tuple[str, int]], permits: int, queue: int
) -> None:
    async def follow() -> None:
        gate = admission(max_in_flight=permits, max_queued=queue)
        async with requests(gate) as some:
            for number, (action, which) in enumerate(schedule):
                alive = [name for name, task in some.tasks.items() if not task.done()]
                if action == "start":
                    await some.start(str(number))
                elif alive and action == "cancel":
                    some.tasks[alive[which % len(alive)]].cancel()
                elif alive:
                    some.ends[alive[which % len(alive)]].set()
                await asyncio.sleep(0)
                assert gate.in_flight <= permits
                assert gate.queued <= queue
        await gate.drained()
        assert (gate.in_flight, gate.queued) == (0, 0)

    asyncio.run(asyncio.wait_for(follow(), 5))


# ---- draining


async def test_a_draining_server_takes_nothing_new_and_finishes_what_runs_and_waits() -> None:
    gate = admission(max_in_flight=1)
    async with requests(gate) as some:
        await some.start("a")
        await some.start("b")
        gate.is_draining = True
        with pytest.raises(Draining) as refusal:
            async with admitted(gate, ACME, FREE, 1):
                pass
        assert refusal.value.retry_after_seconds
        drained = asyncio.create_task(gate.drained())
        await some.finish("a")
        await until(lambda: some.admitted == ["a", "b"])
        assert not drained.done()
        await some.finish("b")
        await asyncio.wait_for(drained, 1)


async def test_a_server_without_requests_is_drained_at_once() -> None:
    await asyncio.wait_for(admission().drained(), 1)


# ---- hints


HINTS = [
    (0.0, 1, 1),
    (0.0004, 1, 1),
    (1.2, 2, 1200),
    (1.2001, 2, 1201),
    (9000.0, 120, 120_000),  # OpenAI's clients do not wait at all on more than two minutes
    (-3.0, 1, 1),
]


@pytest.mark.parametrize(("seconds", "header", "milliseconds"), HINTS)
def test_hints_are_never_zero_too_short_or_longer_than_clients_wait(
    seconds: float, header: int, milliseconds: int
) -> None:
    assert retry_after_header(seconds) == header
    assert retry_after_ms_header(seconds) == milliseconds


# ---- in a whole server: what was used, however the request ends


async def used_by(served: Served, tokens_per_minute: int) -> int:
    """Tokens of acme's budget that are used, told by what one more request is refused for."""
    reply = await served.complete("a" * 100, max_tokens=tokens_per_minute - 100)
    words = reply.json()["error"]["message"]
    return int(words.split(" are used or reserved")[0].rsplit(" ", 1)[1])


@dataclass
class ScoringEngine(EchoEngine):
    """Where nothing is to be generated, scores the prompt; refuses all while it is told to."""

    refuses: bool = False

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if self.refuses:
            raise InvalidRequest("This cannot be done.")
        if request.sampling.max_tokens == 0:
            yield self._scored(request)
            return
        async for delta in super().generate(request):
            yield delta


@pytest.fixture
def engine() -> ScoringEngine:
    return ScoringEngine()


async def test_a_prompt_that_the_engine_has_read_is_used_though_nothing_was_generated(
    serve_with: ServeWith,
) -> None:
    only_scores = {"max_tokens": 0, "echo": True, "logprobs": 1}
    async with serve_with(limits=LimitsConfig(tokens_per_minute=200)) as served:
        assert (await served.complete("a" * 90, **only_scores)).status_code == 200
        assert (await served.complete(["a" * 40, "b" * 50], **only_scores)).status_code == 200
        reply = await served.complete("a" * 90, **only_scores)
        assert reply.status_code == 429
        assert reply.json()["error"]["code"] == "token_budget_exceeded"


async def test_who_leaves_before_the_first_token_has_used_the_prompt_that_was_begun(
    serve_with: ServeWith,
) -> None:
    limits = LimitsConfig(tokens_per_minute=200, max_in_flight=2)
    async with serve_with(limits=limits) as served, on_a_socket(served) as client:
        served.engine.pace_seconds = 60
        gate = served.server.admission
        body = {"model": "base", "prompt": "a" * 40, "max_tokens": 5}
        running = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: bool(served.engine.running), 5)
        queued = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: gate.queued == 1, 5)
        queued.cancel()
        running.cancel()
        await until(lambda: gate.present == 0, 5)
        assert await used_by(served, 200) == 40  # nothing for who only waited


async def test_what_the_engine_refuses_uses_nothing(
    serve_with: ServeWith, engine: ScoringEngine
) -> None:
    async with serve_with(limits=LimitsConfig(tokens_per_minute=200)) as served:
        engine.refuses = True
        assert (await served.complete("a" * 90, max_tokens=1)).status_code == 400
        engine.refuses = False
        assert (await served.complete("a" * 190, max_tokens=1)).status_code == 200
