"""Places and slots go round by tokens served: nobody starves, nothing is lost, all is bounded."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.adapters.names import AdapterVersion
from loragate.server.admission.fair_queue import FairQueue, QueueBounds, QueueGrant
from loragate.server.admission.flows import INPUT_WEIGHT, OUTPUT_WEIGHT
from loragate.server.config import EngineConfig, LimitsConfig
from loragate.server.core import Route
from loragate.server.errors import AdapterUnavailable, Overloaded
from support.clock import Clock
from support.server.queued_requests import crowd
from support.server.small_server import ServeWith
from support.waiting import until


def adapter(number: int) -> AdapterVersion:
    return AdapterVersion("acme", f"adapter-{number}", 1, f"digest-{number}", number)


def route(number: int) -> Route:
    """Adapter `number`; 0 and less: a tenant's use of the base model."""
    return Route("acme", adapter(number)) if number > 0 else Route(f"tenant{number}")


HOT, COLD, THIRD, BASE = route(1), route(2), route(3), route(0)


def fair_queue(
    *,
    permits: int = 100,
    slots: int = 1,
    turn_seconds: float = 0.0,
    clock: Clock | None = None,
    bounds: QueueBounds | None = None,
) -> FairQueue:
    return FairQueue(
        permits=permits,
        slots=slots,
        bounds=bounds or QueueBounds(1000, 1000, 5.0),
        turn_seconds=turn_seconds,
        clock=clock or Clock(),
    )


# ---- who is next


async def test_a_long_queue_of_one_tenant_does_not_delay_another_tenants_short_one() -> None:
    async with crowd(fair_queue(permits=1)) as some:
        for number in range(10):
            await some.start(f"hot {number}", route(0))
        await some.start("other", route(-1))
        await some.end("hot 0", tokens=20)
        assert list(some.running) == ["other"]


async def test_streams_of_a_hot_adapter_cannot_keep_a_cold_one_from_its_slot() -> None:
    async with crowd(fair_queue(slots=1)) as some:
        for number in range(3):
            await some.start(f"hot {number}", HOT)
        await some.start("cold", COLD)
        for number in range(3):
            await some.end(f"hot {number}", tokens=20)
            await some.start(f"hot {number} again", HOT)
        assert list(some.running) == ["cold"]
        await some.end("cold", tokens=20)
        assert sorted(some.running) == ["hot 0 again", "hot 1 again", "hot 2 again"]


async def test_of_several_slots_the_one_served_most_is_called_back_and_no_other() -> None:
    async with crowd(fair_queue(slots=2)) as some:
        await some.start("much", HOT)
        await some.start("little", THIRD)
        some.running["much"].charge(100)
        some.running["little"].charge(50)
        await some.start("cold", COLD)
        await some.start("little more", THIRD)
        await some.start("much more", HOT)
        assert sorted(some.running) == ["little", "little more", "much"]
        await some.end("much")
        assert sorted(some.running) == ["cold", "little", "little more"]


async def test_who_waits_for_a_slot_holds_no_place() -> None:
    queue = fair_queue(permits=2, slots=1)
    async with crowd(queue) as some:
        await some.start("hot", HOT)
        for number in range(5):
            await some.start(f"cold {number}", COLD)
        await some.start("base", BASE)
        assert sorted(some.running) == ["base", "hot"]
        assert (queue.in_flight, queue.queued, queue.awaiting_slot) == (2, 5, 1)


async def test_a_slot_just_given_stays_for_its_turn() -> None:
    clock = Clock()
    async with crowd(fair_queue(slots=1, turn_seconds=1.0, clock=clock)) as some:
        await some.start("hot", HOT)
        await some.start("cold", COLD)
        some.running["hot"].charge(50)
        clock.now = 0.9
        await some.start("in its turn", HOT)
        clock.now = 1.0
        await some.start("after it", HOT)
        assert sorted(some.running) == ["hot", "in its turn"]


async def test_once_the_cold_one_has_given_up_the_hot_one_goes_on() -> None:
    async with crowd(fair_queue(slots=1)) as some:
        await some.start("hot", HOT)
        await some.start("cold", COLD)
        some.running["hot"].charge(50)
        await some.start("hot again", HOT)
        assert list(some.running) == ["hot"]
        await some.leave("cold")
        await asyncio.sleep(0)
        assert sorted(some.running) == ["hot", "hot again"]


async def test_an_adapter_that_was_away_has_saved_nothing_up() -> None:
    async with crowd(fair_queue(permits=1)) as some:
        await some.start("old", route(-1))
        await some.end("old", tokens=5)
        await some.start("hot", route(0), prompt_tokens=1000)
        for number in range(3):
            await some.start(f"back {number}", route(-1), prompt_tokens=10)
        await some.start("hot again", route(0))
        served = []
        for _ in range(4):
            [name] = some.running
            served.append(name)
            await some.end(name, tokens=10)
        assert served == ["hot", "back 0", "hot again", "back 1"]


async def test_leaving_for_a_moment_does_not_shed_what_was_served() -> None:
    async with crowd(fair_queue(permits=1)) as some:
        await some.start("hot", route(0))
        for number in range(3):
            await some.start(f"other {number}", route(-1), prompt_tokens=10)
        await some.end("hot", tokens=1000)
        await some.start("hot again", route(0))
        await some.end("other 0", tokens=10)
        await some.end("other 1", tokens=10)
        assert list(some.running) == ["other 2"]


async def test_a_claim_for_a_load_waits_its_turn_and_needs_no_place() -> None:
    queue = fair_queue(permits=1, slots=1)
    async with crowd(queue) as some:
        await some.start("hot", HOT)
        claim = asyncio.create_task(queue.acquire_slot(adapter(2)))
        await asyncio.sleep(0)
        assert not queue.try_acquire_slot(adapter(3))
        await some.start("hot again", HOT)
        await some.end("hot", tokens=20)
        await asyncio.wait_for(claim, 1)
        await some.start("base", BASE)
        assert list(some.running) == ["base"]
        queue.release_slot(adapter(2))
        assert not queue.is_slot_in_use(2)


async def test_a_claim_in_passing_takes_no_slot_that_somebody_waits_for() -> None:
    queue = fair_queue(permits=1, slots=1)
    async with crowd(queue) as some:
        await some.start("base", BASE)
        await some.start("cold", COLD)
        assert not queue.try_acquire_slot(adapter(3))
        await some.leave("cold")
        assert queue.try_acquire_slot(adapter(3))
        assert queue.slots_in_use == 1


# ---- bounds


async def test_one_adapter_cannot_fill_the_queue() -> None:
    queue = fair_queue(slots=1, bounds=QueueBounds(10, 2, 5.0))
    async with crowd(queue) as some:
        await some.start("running", THIRD)
        for number in range(2):
            await some.start(f"hot {number}", HOT)
        with pytest.raises(Overloaded, match=r"2 requests of acme/adapter-1@v1 wait") as refusal:
            queue.check_room(HOT)
        assert refusal.value.retry_after_seconds
        queue.check_room(COLD)


async def test_who_gets_no_slot_in_time_is_told_so_and_leaves_no_trace() -> None:
    queue = fair_queue(slots=1, bounds=QueueBounds(10, 10, 0.01))
    async with crowd(queue) as some:
        await some.start("hot", HOT)
        with pytest.raises(AdapterUnavailable, match="All 1 adapter slots") as refusal:
            await queue.take(COLD, 1)
        assert refusal.value.code == "no_adapter_slot"
        assert refusal.value.retry_after_seconds
        assert (queue.queued, queue.awaiting_slot) == (0, 0)
        await some.start("hot again", HOT)
        assert "hot again" in some.running


# ---- under any schedule


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "end", "leave", "load", "unload"]),
        st.integers(-1, 4),
        st.integers(0, 30),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps=steps, permits=st.integers(1, 4), slots=st.integers(1, 3))
def test_under_any_schedule_nothing_is_given_twice_nothing_lost_and_nobody_left_waiting(
    steps: list[tuple[str, int, int]], permits: int, slots: int
) -> None:
    async def follow() -> None:
        queue = fair_queue(permits=permits, slots=slots)
        routes: dict[str, Route] = {}
        loads: list[AdapterVersion] = []
        loading: list[asyncio.Task[None]] = []

        async def load(version: AdapterVersion) -> None:
            await queue.acquire_slot(version)
            loads.append(version)

        async with crowd(queue) as some:

            def check() -> None:
                held = {routes[name].version for name in some.running} - {None}
                assert len(some.running) == queue.in_flight <= permits
                assert len(held | set(loads)) <= queue.slots_in_use <= slots
                waiting = [task for task in some.tasks.values() if not task.done()]
                assert len(waiting) == queue.queued

            for number, (action, where, tokens) in enumerate(steps):
                name = str(number)
                if action == "start":
                    routes[name] = route(where)
                    await some.start(name, route(where), tokens)
                elif action == "end" and some.running:
                    await some.end(list(some.running)[tokens % len(some.running)], tokens)
                elif action == "leave" and some.tasks:
                    left = list(some.tasks)[tokens % len(some.tasks)]
                    if left not in some.running:
                        await some.leave(left)
                elif action == "load" and where > 0:
                    loading.append(asyncio.create_task(load(adapter(where))))
                elif action == "unload" and loads:
                    queue.release_slot(loads.pop(0))
                for _ in range(3):
                    await asyncio.sleep(0)
                check()
            while some.running or loads or queue.queued or not all(t.done() for t in loading):
                assert some.running or loads, "somebody waits and nobody is served"
                for name in list(some.running):
                    await some.end(name)
                while loads:
                    queue.release_slot(loads.pop())
                for _ in range(3):
                    await asyncio.sleep(0)
                check()
        assert (queue.in_flight, queue.queued, queue.slots_in_use, queue.awaiting_slot) == (
            0,
            0,
            0,
            0,
        )

    asyncio.run(asyncio.wait_for(follow(), 5))


@settings(max_examples=40, deadline=None)
@given(
    permits=st.integers(1, 6),
    slots=st.integers(1, 3),
    answers=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    turn=st.integers(0, 10),
)
def test_what_backlogged_adapters_are_served_differs_by_a_constant_at_most(
    permits: int, slots: int, answers: list[int], turn: int
) -> None:
    """Adapter i asks for answers[i] tokens again and again; the engine makes one token for each
    running request a step. The bound: what it can make in `turn_seconds` and one longest answer.
    """
    prompt = 4
    most_a_step = permits * (prompt * INPUT_WEIGHT + OUTPUT_WEIGHT)
    bound = most_a_step * (turn + max(answers))

    async def follow() -> None:
        clock = Clock()
        queue = fair_queue(permits=permits, slots=slots, turn_seconds=turn, clock=clock)
        served = dict.fromkeys(range(1, len(answers) + 1), 0)
        running: list[tuple[int, QueueGrant, int]] = []

        async def ask(number: int) -> None:
            taken = await queue.take(route(number), prompt)
            served[number] += prompt * INPUT_WEIGHT
            running.append((number, taken, answers[number - 1]))

        waiting = [
            asyncio.create_task(ask(number)) for number in served for _ in range(2 * permits)
        ]
        await asyncio.sleep(0)
        served = dict.fromkeys(served, 0)  # from here on all are backlogged
        for _ in range(100):
            for _ in range(3):
                await asyncio.sleep(0)
            clock.now += 1
            before, running[:] = list(running), []
            for number, taken, left in before:
                taken.charge(1)
                served[number] += OUTPUT_WEIGHT
                if left > 1:
                    running.append((number, taken, left - 1))
                else:
                    waiting.append(asyncio.create_task(ask(number)))
                    taken.end()
            assert max(served.values()) - min(served.values()) <= bound
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(asyncio.wait_for(follow(), 10))


# ---- in a whole server


async def test_a_cold_adapter_is_answered_though_a_hot_ones_streams_never_pause(
    serve_with: ServeWith,
) -> None:
    engine = EngineConfig(max_loras=1, max_cpu_loras=4)
    limits = LimitsConfig(slot_turn_seconds=0.0, queue_timeout_seconds=10.0)
    async with serve_with(engine=engine, limits=limits) as served:
        served.engine.pace_seconds = 0.02

        async def stream() -> None:
            while True:
                hot = await served.chat(model="support", max_tokens=20)
                assert hot.status_code == 200

        hot = []
        for _ in range(4):
            hot.append(asyncio.create_task(stream()))
            await asyncio.sleep(0.1)  # out of step: there is never a moment without one
        await until(lambda: len(served.engine.running) >= 3, 10)
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "router@v1", "messages": messages, "max_tokens": 1}
        cold = await asyncio.wait_for(served.post("/v1/chat/completions", body, "globex"), 20)
        assert cold.headers["x-loragate-adapter"] == "globex/router@v1"
        assert not any(task.done() for task in hot)
        for task in hot:
            task.cancel()
        await asyncio.gather(*hot, return_exceptions=True)
