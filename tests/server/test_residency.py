import asyncio
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fakes import TINY_MODEL, DirectLoader, EchoEngine, GatedEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from small_server import until

from loragate.adapters.names import AdapterVersion
from loragate.server.core import Route
from loragate.server.engine import LoadedAdapter
from loragate.server.errors import AdapterUnavailable
from loragate.server.fair_queue import FairQueue, QueueBounds
from loragate.server.residency import Residency


def route(number: int) -> Route:
    return Route("acme", AdapterVersion("acme", "support", number, f"digest-{number}", number))


def slots_of(engine: EchoEngine, wait_seconds: float = 5.0) -> FairQueue:
    bounds = QueueBounds(100, 100, wait_seconds)
    return FairQueue(places=100, slots=engine.model.max_loras, bounds=bounds, turn_seconds=0)


def residency(
    engine: EchoEngine, queue: FairQueue | None = None, *, max_resident: int = 4
) -> Residency:
    queue = queue or slots_of(engine)
    return Residency(DirectLoader(engine), queue, max_resident=max_resident)


async def test_the_base_model_needs_no_slot() -> None:
    engine = EchoEngine()
    queue = slots_of(engine)
    pool = residency(engine, queue)
    async with pool.lease(Route("acme")) as adapter:
        assert adapter is None
        assert queue.leased == 0
    assert engine.loads == []


async def test_many_first_requests_load_a_version_once() -> None:
    engine = GatedEngine(gate=asyncio.Event())
    queue = slots_of(engine)
    pool = residency(engine, queue)
    seen: list[LoadedAdapter | None] = []

    async def ask() -> None:
        async with pool.lease(route(1)) as adapter:
            seen.append(adapter)

    asking = asyncio.gather(*(ask() for _ in range(20)))
    await asyncio.sleep(0)
    assert engine.gate is not None
    engine.gate.set()
    await asking
    assert engine.loads == ["acme/support@v1"]
    assert [adapter.path for adapter in seen if adapter] == [Path("digest-1")] * 20
    assert queue.leased == 0


async def test_a_version_stays_loaded_after_its_last_request() -> None:
    engine = EchoEngine()
    pool = residency(engine)
    for _ in range(3):
        async with pool.lease(route(1)):
            pass
    assert engine.loads == ["acme/support@v1"]
    assert [str(version) for version in pool.resident] == ["acme/support@v1"]


async def test_the_least_recently_used_version_makes_room() -> None:
    engine = EchoEngine()
    pool = residency(engine, max_resident=2)
    for number in (1, 2, 1, 3):
        async with pool.lease(route(number)):
            pass
    assert engine.unloads == ["acme/support@v2"]
    assert sorted(engine.loaded) == [1, 3]


async def test_a_version_that_is_in_use_is_passed_over_when_room_is_made() -> None:
    engine = EchoEngine()
    pool = residency(engine, max_resident=2)
    async with pool.lease(route(1)):
        for number in (2, 3, 2):
            async with pool.lease(route(number)):
                pass
    assert "acme/support@v1" not in engine.unloads


async def test_a_version_that_was_unloaded_is_loaded_again_when_it_is_asked_for() -> None:
    engine = EchoEngine()
    pool = residency(engine, max_resident=2)
    for number in (1, 2, 3, 1):
        async with pool.lease(route(number)) as adapter:
            assert adapter is not None
            assert number in engine.loaded
    assert engine.loads.count("acme/support@v1") == 2


async def test_a_client_that_leaves_does_not_stop_the_load_that_others_wait_for() -> None:
    engine = GatedEngine(gate=asyncio.Event())
    pool = residency(engine)

    async def ask() -> str:
        async with pool.lease(route(1)) as adapter:
            return str(adapter and adapter.version)

    first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert engine.gate is not None
    engine.gate.set()
    assert await second == "acme/support@v1"
    assert engine.loads == ["acme/support@v1"]


async def test_a_load_that_everybody_left_keeps_its_slot_until_it_is_done() -> None:
    engine = GatedEngine(replace(TINY_MODEL, max_loras=1))
    queue = slots_of(engine)
    pool = residency(engine, queue)
    async with pool.lease(route(2)):
        pass
    engine.gate = asyncio.Event()
    left = asyncio.create_task(pool.lease(route(1)).__aenter__())
    await asyncio.sleep(0)
    left.cancel()
    entered = asyncio.Event()

    async def ask() -> None:
        async with pool.lease(route(2)):
            entered.set()

    other = asyncio.create_task(ask())
    for _ in range(5):
        await asyncio.sleep(0)
    # Version 2 is loaded, but one more than the engine has slots for would be in use at once.
    assert not entered.is_set()
    engine.gate.set()
    await asyncio.wait_for(other, 1)
    assert queue.leased == 0


async def test_closing_ends_a_load_that_everybody_left_and_that_never_ends() -> None:
    engine, queue = GatedEngine(gate=asyncio.Event()), slots_of(EchoEngine())
    pool = residency(engine, queue)
    left = asyncio.create_task(pool.lease(route(1)).__aenter__())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait_for(pool.close(), 1)
    assert engine.loads == []
    assert queue.leased == 0


async def test_a_refused_adapter_is_tried_again_by_the_next_request() -> None:
    engine = EchoEngine(refused={"acme/support@v1"})
    queue = slots_of(engine)
    pool = residency(engine, queue)
    with pytest.raises(AdapterUnavailable, match="refuses"):
        async with pool.lease(route(1)):
            pass
    await until(lambda: queue.leased == 0)
    engine.refused.clear()
    async with pool.lease(route(1)) as adapter:
        assert adapter is not None


async def test_with_every_slot_held_a_request_waits_for_one() -> None:
    engine = EchoEngine()
    pool = residency(engine)
    entered = asyncio.Event()

    async def ask() -> None:
        async with pool.lease(route(3)):
            entered.set()

    async with pool.lease(route(1)):
        async with pool.lease(route(2)):
            third = asyncio.create_task(ask())
            await asyncio.sleep(0)
            assert not entered.is_set()
        await asyncio.wait_for(entered.wait(), 1)
        await third


async def test_a_request_for_a_version_that_is_held_needs_no_slot_of_its_own() -> None:
    engine = EchoEngine()
    queue = slots_of(engine, wait_seconds=0.01)
    pool = residency(engine, queue)
    async with pool.lease(route(1)), pool.lease(route(2)), pool.lease(route(1)) as adapter:
        assert adapter is not None
        assert queue.leased == 2


async def test_a_request_that_gets_no_slot_in_time_is_told_so() -> None:
    engine = EchoEngine()
    pool = residency(engine, slots_of(engine, wait_seconds=0.01))
    async with pool.lease(route(1)), pool.lease(route(2)):
        with pytest.raises(AdapterUnavailable, match="All 2 adapter slots") as refusal:
            async with pool.lease(route(3)):
                pass
    assert refusal.value.code == "no_adapter_slot"
    assert refusal.value.retry_after_seconds
    async with pool.lease(route(3)):
        pass


@dataclass
class StrictEngine(EchoEngine):
    """Takes a few steps for a load, and holds loragate to its promises."""

    pool: Residency | None = None
    held: tuple[int, ...] = ()
    steps: int = 1
    max_resident: int = 2

    async def load(self, adapter: LoadedAdapter) -> None:
        for _ in range(self.steps):
            await asyncio.sleep(0)
        assert adapter.version.lora_id not in self.loaded
        assert len(self.loaded) < self.max_resident
        assert len({*self.held, adapter.version.lora_id}) <= self.model.max_loras
        await super().load(adapter)

    async def unload(self, adapter: LoadedAdapter) -> None:
        assert adapter.version.lora_id not in self.held
        await asyncio.sleep(0)
        await super().unload(adapter)


actions = st.lists(
    st.tuples(st.sampled_from(["start", "end", "leave", "step"]), st.integers(1, 5)), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(actions=actions, steps=st.integers(0, 3), max_resident=st.integers(2, 4))
def test_under_any_schedule_slots_suffice_and_nothing_in_use_is_unloaded(
    actions: list[tuple[str, int]], steps: int, max_resident: int
) -> None:
    async def follow() -> None:
        engine = StrictEngine(steps=steps, max_resident=max_resident)
        queue = slots_of(engine)
        pool = residency(engine, queue, max_resident=max_resident)
        held: list[int] = []
        running: list[tuple[asyncio.Task[None], asyncio.Event]] = []

        async def hold(number: int, end: asyncio.Event) -> None:
            async with pool.lease(route(number)):
                assert number in engine.loaded
                held.append(number)
                engine.held = tuple(held)
                assert len(set(held)) <= engine.model.max_loras
                try:
                    await end.wait()
                    assert number in engine.loaded
                finally:
                    held.remove(number)
                    engine.held = tuple(held)

        for action, number in actions:
            if action == "start":
                end = asyncio.Event()
                running.append((asyncio.create_task(hold(number, end)), end))
            elif running and action == "end":
                running[number % len(running)][1].set()
            elif running and action == "leave":
                running[number % len(running)][0].cancel()
            for _ in range(number):
                await asyncio.sleep(0)
            assert queue.leased <= engine.model.max_loras
        for _, end in running:
            end.set()
        for task, _ in running:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await pool.close()
        await asyncio.sleep(0)
        assert queue.leased == 0
        assert len(engine.loaded) <= max_resident

    asyncio.run(asyncio.wait_for(follow(), 5))
