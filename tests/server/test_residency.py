import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.adapters.names import AdapterVersion
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.core import Route
from loragate.server.engine.protocol import LoadedAdapter, Placing
from loragate.server.errors import AdapterUnavailable, EngineDead, MachineFault
from loragate.server.residency.residency import Residency
from support.engines.echo_engine import TINY_MODEL, DirectLoader, EchoEngine, GatedEngine
from support.waiting import until


def version(number: int) -> AdapterVersion:
    return AdapterVersion("acme", "support", number, f"digest-{number}", number)


def route(number: int) -> Route:
    return Route("acme", version(number))


def slots_of(engine: EchoEngine, wait_seconds: float = 5.0) -> FairQueue:
    bounds = QueueBounds(100, 100, wait_seconds)
    return FairQueue(permits=100, slots=engine.model.max_loras, bounds=bounds, turn_seconds=0)


def residency(
    engine: EchoEngine, queue: FairQueue | None = None, *, max_resident: int = 4
) -> Residency:
    queue = queue or slots_of(engine)
    return Residency(DirectLoader(engine), queue, max_resident=max_resident)


async def test_the_base_model_needs_no_slot() -> None:
    engine = EchoEngine()
    queue = slots_of(engine)
    pool = residency(engine, queue)
    async with pool.acquire(Route("acme")) as adapter:
        assert adapter is None
        assert queue.slots_in_use == 0
    assert engine.loads == []


async def test_many_first_requests_load_a_version_once() -> None:
    engine = GatedEngine(gate=asyncio.Event())
    queue = slots_of(engine)
    pool = residency(engine, queue)
    seen: list[LoadedAdapter | None] = []

    async def ask() -> None:
        async with pool.acquire(route(1)) as adapter:
            seen.append(adapter)

    asking = asyncio.gather(*(ask() for _ in range(20)))
    await asyncio.sleep(0)
    assert engine.gate is not None
    engine.gate.set()
    await asking
    assert engine.loads == ["acme/support@v1"]
    assert [adapter.path for adapter in seen if adapter] == [Path("digest-1")] * 20
    assert queue.slots_in_use == 0


async def test_a_version_stays_loaded_after_its_last_request() -> None:
    engine = EchoEngine()
    pool = residency(engine)
    for _ in range(3):
        async with pool.acquire(route(1)):
            pass
    assert engine.loads == ["acme/support@v1"]
    assert [str(version) for version in pool.resident] == ["acme/support@v1"]


async def test_the_least_recently_used_version_makes_room() -> None:
    engine = EchoEngine()
    pool = residency(engine, max_resident=2)
    for number in (1, 2, 1, 3):
        async with pool.acquire(route(number)):
            pass
    assert engine.unloads == ["acme/support@v2"]
    assert sorted(engine.loaded) == [1, 3]


async def test_a_version_that_is_in_use_is_passed_over_when_room_is_made() -> None:
    engine = EchoEngine()
    pool = residency(engine, max_resident=2)
    async with pool.acquire(route(1)):
        for number in (2, 3, 2):
            async with pool.acquire(route(number)):
                pass
    assert "acme/support@v1" not in engine.unloads


async def test_a_version_that_was_unloaded_is_loaded_again_when_it_is_asked_for() -> None:
    engine = EchoEngine()
    pool = residency(engine, max_resident=2)
    for number in (1, 2, 3, 1):
        async with pool.acquire(route(number)) as adapter:
            assert adapter is not None
            assert number in engine.loaded
    assert engine.loads.count("acme/support@v1") == 2


async def test_a_client_that_leaves_does_not_stop_the_load_that_others_wait_for() -> None:
    engine = GatedEngine(gate=asyncio.Event())
    pool = residency(engine)

    async def ask() -> str:
        async with pool.acquire(route(1)) as adapter:
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
    async with pool.acquire(route(2)):
        pass
    engine.gate = asyncio.Event()
    left = asyncio.create_task(pool.acquire(route(1)).__aenter__())
    await asyncio.sleep(0)
    left.cancel()
    entered = asyncio.Event()

    async def ask() -> None:
        async with pool.acquire(route(2)):
            entered.set()

    other = asyncio.create_task(ask())
    for _ in range(5):
        await asyncio.sleep(0)
    # Version 2 is loaded, but one more than the engine has slots for would be in use at once.
    assert not entered.is_set()
    engine.gate.set()
    await asyncio.wait_for(other, 1)
    assert queue.slots_in_use == 0


async def test_closing_ends_a_load_that_everybody_left_and_that_never_ends() -> None:
    engine, queue = GatedEngine(gate=asyncio.Event()), slots_of(EchoEngine())
    pool = residency(engine, queue)
    left = asyncio.create_task(pool.acquire(route(1)).__aenter__())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait_for(pool.close(), 1)
    assert engine.loads == []
    assert queue.slots_in_use == 0


async def test_a_refused_adapter_is_tried_again_by_the_next_request() -> None:
    engine = EchoEngine(refused={"acme/support@v1"})
    queue = slots_of(engine)
    pool = residency(engine, queue)
    with pytest.raises(AdapterUnavailable, match="refuses"):
        async with pool.acquire(route(1)):
            pass
    await until(lambda: queue.slots_in_use == 0)
    engine.refused.clear()
    async with pool.acquire(route(1)) as adapter:
        assert adapter is not None


@dataclass
class KeepingEngine(EchoEngine):
    """Does not let go of anything while it is told so."""

    keeps: bool = False

    async def unload(self, adapter: LoadedAdapter) -> None:
        if self.keeps:
            raise ZeroDivisionError("float division by zero")
        await super().unload(adapter)


async def test_what_the_engine_does_not_let_go_of_is_known_and_leased_to_nobody() -> None:
    engine = KeepingEngine(keeps=True)
    pool = residency(engine, max_resident=2)
    for number in (1, 2):
        await pool.load(version(number))

    with pytest.raises(MachineFault, match="does not let go"):
        await pool.load(version(3))  # which needs the room of the first
    with pytest.raises(MachineFault, match="does not let go"):
        await pool.load(version(1))
    assert engine.loads == ["acme/support@v1", "acme/support@v2"]
    assert pool.resident == (version(2),)
    await asyncio.wait_for(pool.leaving(), 1)
    with pytest.raises(MachineFault):
        await pool.take_out_leaving()

    engine.keeps = False
    await pool.take_out_leaving()
    assert list(engine.loaded) == [2]
    await pool.load(version(1))
    assert engine.loads[2:] == ["acme/support@v1"]


async def test_drain_that_the_engine_refuses_is_made_again() -> None:
    engine = KeepingEngine(keeps=True)
    pool = residency(engine)
    await pool.load(version(1))
    with pytest.raises(MachineFault):
        await pool.drain(version(1))
    assert pool.resident == ()

    engine.keeps = False
    await pool.drain(version(1))

    assert engine.loaded == {}


async def test_nobody_loads_a_version_before_its_drain_is_over() -> None:
    engine = EchoEngine()
    pool = residency(engine)
    await pool.load(version(1))

    async with pool.drained(version(1)) as is_out:
        assert is_out
        asking = asyncio.create_task(pool.load(version(1)))
        await asyncio.wait_for(pool.load(version(2)), 1)
        assert not asking.done()
    await asyncio.wait_for(asking, 1)

    assert engine.loads == ["acme/support@v1", "acme/support@v2", "acme/support@v1"]


async def test_drained_version_that_is_meant_again_stays() -> None:
    engine = EchoEngine()
    pool = residency(engine)
    await pool.load(version(1))

    async with pool.drained(version(1), stays=lambda: True) as is_out:
        assert not is_out
        await asyncio.wait_for(pool.load(version(1)), 1)

    assert engine.unloads == []


@dataclass
class LateLoader(DirectLoader):
    """Has something to do yet when the engine has loaded, inside its placing or after it."""

    moment: str = "inside"
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False

    async def load(self, version: AdapterVersion, placing: Placing) -> LoadedAdapter:
        adapter = LoadedAdapter(version, Path(version.digest))
        async with placing(adapter):
            await self.engine.load(adapter)
            if self.moment == "inside":
                await self.may_end.wait()
        if self.moment == "after":
            await self.may_end.wait()
            if self.fails:
                raise ZeroDivisionError("the registry cannot be told")
        return adapter


async def test_load_that_the_engines_restart_overtakes_is_not_believed() -> None:
    engine = EchoEngine()
    loader = LateLoader(engine)
    pool = Residency(loader, slots_of(engine), max_resident=4)
    asking = asyncio.create_task(pool.load(version(1)))
    await until(lambda: 1 in engine.loaded, 10)

    engine.loaded.clear()  # another engine, which is empty
    pool.forget_all()
    loader.may_end.set()

    with pytest.raises(EngineDead):
        await asking
    assert pool.resident == ()
    await pool.load(version(1))
    assert list(engine.loaded) == [1]


async def test_version_is_leased_to_nobody_before_its_load_has_ended_well() -> None:
    engine = EchoEngine()
    loader = LateLoader(engine, moment="after", fails=True)
    pool = Residency(loader, slots_of(engine), max_resident=4)
    asking = [asyncio.create_task(pool.load(version(1))) for _ in range(2)]
    await until(lambda: 1 in engine.loaded, 10)
    asking.append(asyncio.create_task(pool.load(version(1))))
    async with pool.try_acquire(version(1)) as borrowed:
        assert borrowed is None

    loader.may_end.set()

    for each in asking:
        with pytest.raises(ZeroDivisionError):
            await each
    assert engine.loaded == {}
    assert pool.resident == ()


async def test_with_every_slot_held_a_request_waits_for_one() -> None:
    engine = EchoEngine()
    pool = residency(engine)
    entered = asyncio.Event()

    async def ask() -> None:
        async with pool.acquire(route(3)):
            entered.set()

    async with pool.acquire(route(1)):
        async with pool.acquire(route(2)):
            third = asyncio.create_task(ask())
            await asyncio.sleep(0)
            assert not entered.is_set()
        await asyncio.wait_for(entered.wait(), 1)
        await third


async def test_a_request_for_a_version_that_is_held_needs_no_slot_of_its_own() -> None:
    engine = EchoEngine()
    queue = slots_of(engine, wait_seconds=0.01)
    pool = residency(engine, queue)
    async with pool.acquire(route(1)), pool.acquire(route(2)), pool.acquire(route(1)) as adapter:
        assert adapter is not None
        assert queue.slots_in_use == 2


async def test_a_request_that_gets_no_slot_in_time_is_told_so() -> None:
    engine = EchoEngine()
    pool = residency(engine, slots_of(engine, wait_seconds=0.01))
    async with pool.acquire(route(1)), pool.acquire(route(2)):
        with pytest.raises(AdapterUnavailable, match="All 2 adapter slots") as refusal:
            async with pool.acquire(route(3)):
                pass
    assert refusal.value.code == "no_adapter_slot"
    assert refusal.value.retry_after_seconds
    async with pool.acquire(route(3)):
        pass


@dataclass
class StrictEngine(EchoEngine):
    """Takes a few steps for a load, and holds loragate to its promises. Loads and unloads fail as
    `fate` says, before or after they are done.
    """

    pool: Residency | None = None
    held: tuple[int, ...] = ()
    steps: int = 1
    max_resident: int = 2
    fate: list[str] = field(default_factory=list)
    torn_away: list[int] = field(default_factory=list)  # from who held it

    async def load(self, adapter: LoadedAdapter) -> None:
        for _ in range(self.steps):
            await asyncio.sleep(0)
        assert adapter.version.lora_id not in self.loaded
        assert len(self.loaded) < self.max_resident
        assert len({*self.held, adapter.version.lora_id}) <= self.model.max_loras
        self._meet("before")
        await super().load(adapter)
        self._meet("after")

    async def unload(self, adapter: LoadedAdapter) -> None:
        if adapter.version.lora_id in self.held:
            self.torn_away.append(adapter.version.lora_id)
        await asyncio.sleep(0)
        self._meet("before")
        await super().unload(adapter)
        self._meet("after")

    def _meet(self, moment: str) -> None:
        if self.fate and self.fate[-1] in (moment, "well") and self.fate.pop() == moment:
            raise ZeroDivisionError(f"an engine fails {moment}")


actions = st.lists(
    st.tuples(st.sampled_from(["start", "end", "leave", "step"]), st.integers(1, 5)), max_size=40
)


fates = st.lists(st.sampled_from(["well", "well", "before", "after"]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(actions=actions, steps=st.integers(0, 3), max_resident=st.integers(2, 4), fate=fates)
def test_under_any_schedule_slots_suffice_and_nothing_in_use_is_unloaded(
    actions: list[tuple[str, int]], steps: int, max_resident: int, fate: list[str]
) -> None:
    async def follow() -> None:
        engine = StrictEngine(steps=steps, max_resident=max_resident, fate=fate)
        queue = slots_of(engine)
        pool = residency(engine, queue, max_resident=max_resident)
        held: list[int] = []
        running: list[tuple[asyncio.Task[None], asyncio.Event]] = []

        async def hold(number: int, end: asyncio.Event) -> None:
            async with pool.acquire(route(number)):
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
            assert queue.slots_in_use <= engine.model.max_loras
        for _, end in running:
            end.set()
        for task, _ in running:
            with contextlib.suppress(asyncio.CancelledError, ZeroDivisionError, MachineFault):
                await task
        await pool.close()
        await asyncio.sleep(0)
        assert queue.slots_in_use == 0
        assert len(engine.loaded) <= max_resident
        assert engine.torn_away == []
        engine.fate.clear()
        await pool.take_out_leaving()
        assert {version.lora_id for version in pool.resident} == engine.loaded.keys()

    asyncio.run(asyncio.wait_for(follow(), 5))
