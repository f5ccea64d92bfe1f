"""One tenant's share: whatever it asks for, others come soon, and nothing is lost on the way."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.adapters.names import AdapterVersion
from loragate.server.admission.fair_queue import FairQueue, QueueBounds, QueueGrant
from loragate.server.admission.flows import INPUT_WEIGHT, OUTPUT_WEIGHT
from loragate.server.admission.shares import TenantCaps
from loragate.server.config import EngineConfig
from loragate.server.core import Route
from loragate.server.errors import AdapterUnavailable, Overloaded
from support.clock import Clock
from support.server.queued_requests import crowd
from support.server.small_server import Served, ServeWith, on_a_socket
from support.waiting import until


def version(tenant: str, number: int) -> AdapterVersion:
    lora_id = 1 + number + 1000 * sum(tenant.encode())
    return AdapterVersion(tenant, f"adapter-{number}", 1, f"digest-{lora_id}", lora_id)


def route(tenant: str, number: int = 0) -> Route:
    """Adapter `number` of the tenant; 0 is the base model, below are merged models."""
    if number == 0:
        return Route(tenant)
    if number < 0:
        return Route(tenant, version(tenant, -number), mode="merged")
    return Route(tenant, version(tenant, number))


def shared_queue(
    *,
    permits: int = 100,
    base_permits: int | None = None,
    slots: int = 8,
    bounds: QueueBounds | None = None,
    turn_seconds: float = 0.0,
    caps: TenantCaps | None = None,
    clock: Clock | None = None,
) -> FairQueue:
    """Of a server with several tenants."""
    return FairQueue(
        permits=permits,
        base_permits=base_permits,
        slots=slots,
        bounds=bounds or QueueBounds(1000, 1000, 5.0),
        turn_seconds=turn_seconds,
        caps=caps or TenantCaps(),
        is_shared=lambda: True,
        clock=clock or Clock(),
    )


@dataclass(eq=False)
class Asked:
    """A request of some sequences, each of which runs until it is told to end."""

    queue: FairQueue
    where: Route
    sequences: int
    running: list[asyncio.Event] = field(default_factory=list)
    begun: int = 0
    task: asyncio.Task[None] | None = None

    def start(self) -> "Asked":
        self.task = asyncio.create_task(self._run())
        return self

    @property
    def is_over(self) -> bool:
        return self.task is not None and self.task.done()

    async def _run(self) -> None:
        turn = await self.queue.take(self.where, 1)
        sequences = [asyncio.create_task(self._sequence(turn)) for _ in range(self.sequences)]
        try:
            await asyncio.gather(*sequences)
        finally:
            for each in sequences:
                each.cancel()
            try:
                await asyncio.gather(*sequences, return_exceptions=True)
            finally:  # it may be cancelled once more
                turn.end()

    async def _sequence(self, turn: QueueGrant) -> None:
        end = asyncio.Event()
        async with turn.permit():
            self.begun += 1
            self.running.append(end)
            try:
                await end.wait()
                turn.charge(1)
            finally:
                self.running.remove(end)


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def leave(requests: Iterable[Asked]) -> None:
    tasks = [each.task for each in requests if each.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---- sequences


async def test_a_request_of_many_sequences_leaves_room_for_another_tenant_at_once() -> None:
    queue = shared_queue(permits=256, base_permits=20)
    many = Asked(queue, route("hog"), 64).start()
    await settle()
    assert many.begun == 16  # four times as many as stay free
    other = Asked(queue, route("other"), 1).start()
    await settle()
    assert other.begun == 1
    for _ in range(10):
        many.running[0].set()
        await settle()
    assert len(many.running) + len(other.running) <= 20
    assert many.begun > 16  # its further sequences begin as places come
    await leave([many, other])
    assert (queue.running, queue.in_flight, queue.queued) == (0, 0, 0)


async def test_many_requests_leave_as_much_room_as_one_of_many_sequences() -> None:
    queue = shared_queue(permits=256, base_permits=20)
    requests = [Asked(queue, route("hog", i % 3), 1).start() for i in range(64)]
    await settle()
    assert queue.running_in_base_engine == 16
    others = [Asked(queue, route(f"other-{i}"), 1).start() for i in range(4)]
    await settle()
    assert [other.begun for other in others] == [1, 1, 1, 1]
    assert queue.running_in_base_engine == 20
    await leave([*requests, *others])


@settings(max_examples=50, deadline=None)
@given(base_permits=st.integers(2, 40), hogs=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_however_many_tenants_take_all_they_can_get_a_further_one_finds_a_place(
    base_permits: int, hogs: list[int]
) -> None:
    async def follow() -> None:
        queue = shared_queue(base_permits=base_permits)
        requests = []
        for i, sequences in enumerate(hogs):
            requests += [Asked(queue, route(f"hog-{i}"), sequences).start() for _ in range(2)]
            await settle()
        free = base_permits - queue.running_in_base_engine
        crowded = sum(1 for i in range(len(hogs)) if requests[2 * i].begun == 1)
        assert free >= 1 or crowded  # the last place goes to a tenant that has none
        if free:
            newcomer = Asked(queue, route("newcomer"), 3).start()
            requests.append(newcomer)
            await settle()
            assert newcomer.begun >= 1
        await leave(requests)
        assert queue.running == 0

    asyncio.run(asyncio.wait_for(follow(), 10))


async def test_the_base_engine_never_gets_more_than_it_runs_and_merged_models_go_past_it() -> None:
    queue = shared_queue(permits=12, base_permits=4)
    base = [Asked(queue, route(f"tenant-{i}"), 3).start() for i in range(4)]
    await settle()
    assert queue.running_in_base_engine == 4
    merged = Asked(queue, route("tenant-0", -1), 2).start()
    await settle()
    assert merged.begun == 2
    assert queue.running == 6
    await leave([*base, merged])


async def test_a_server_of_one_tenant_keeps_nothing_back() -> None:
    queue = FairQueue(
        permits=6, slots=2, bounds=QueueBounds(4, 4, 5.0), turn_seconds=0, is_shared=lambda: False
    )
    running = [Asked(queue, route("only", i % 3), 2).start() for i in range(3)]
    await settle()
    waiting = [Asked(queue, route("only"), 1).start() for _ in range(4)]
    await settle()
    assert (queue.running, queue.slots_in_use, queue.queued) == (6, 2, 4)
    await leave([*running, *waiting])


async def test_what_the_operator_sets_holds_instead() -> None:
    caps = TenantCaps(max_sequences=2, max_loras=3, max_queued=1)
    queue = shared_queue(permits=10, slots=4, caps=caps)
    requests = [Asked(queue, route("one"), 5).start()]
    await settle()
    assert requests[0].begun == 2
    requests.append(Asked(queue, route("one"), 1).start())
    await settle()
    with pytest.raises(Overloaded, match="1 requests of this tenant wait"):
        queue.check_room(route("one"))
    await leave(requests)
    queue = shared_queue(permits=10, slots=4, caps=TenantCaps(max_loras=3))
    requests = [Asked(queue, route("one", i), 1).start() for i in range(1, 5)]
    requests += [Asked(queue, route("two", 1), 1).start()]
    await settle()
    assert [each.begun for each in requests] == [1, 1, 1, 0, 1]
    await leave(requests)


# ---- slots


async def test_long_streams_on_many_versions_of_one_tenant_leave_slots_for_others() -> None:
    queue = shared_queue(slots=8, bounds=QueueBounds(100, 100, 0.05))
    streams = [Asked(queue, route("hog", i), 1).start() for i in range(1, 9)]
    await settle()
    assert queue.slots_in_use == 4
    others = [Asked(queue, route(f"other-{i}", 1), 1).start() for i in range(4)]
    await settle()
    assert [other.begun for other in others] == [1, 1, 1, 1]
    waits = [each for each in streams if not each.begun]
    with pytest.raises(AdapterUnavailable, match="4 adapter slots that this tenant") as refusal:
        await asyncio.gather(*(each.task for each in waits if each.task))
    assert refusal.value.code == "no_adapter_slot"
    await leave([*streams, *others])
    assert (queue.slots_in_use, queue.awaiting_slot) == (0, 0)


async def test_a_tenant_at_its_limit_of_slots_changes_versions_within_it() -> None:
    async with crowd(shared_queue(slots=2)) as some:
        await some.start("first", route("one", 1))
        await some.start("second", route("one", 2))
        some.running["first"].charge(10)
        await some.start("first again", route("one", 1))
        assert list(some.running) == ["first"]  # though a slot is free
        await some.end("first")
        assert list(some.running) == ["second"]


async def test_the_tenant_with_most_slots_gives_one_up_whatever_the_others_were_served() -> None:
    clock = Clock()
    async with crowd(shared_queue(slots=4, turn_seconds=1.0, clock=clock)) as some:
        await some.start("busy base", route("busy"))
        some.running["busy base"].charge(100_000)
        await some.start("many 1", route("many", 1))
        await some.start("many 2", route("many", 2))
        await some.start("third", route("third", 1))
        await some.start("fourth", route("fourth", 1))
        assert some.queue.slots_in_use == 4
        some.running["many 1"].charge(5)
        clock.now = 2.0
        await some.start("busy", route("busy", 1))
        await some.start("many 1 again", route("many", 1))
        assert "busy" not in some.running
        assert "many 1 again" not in some.running
        await some.end("many 1")
        assert "busy" in some.running


async def test_a_load_needs_no_free_share_so_that_a_promotion_waits_for_no_stream() -> None:
    queue = shared_queue(slots=2)
    async with crowd(queue) as some:
        await some.start("stream", route("one", 1))
        await asyncio.wait_for(queue.acquire_slot(version("one", 2)), 1)
        await some.start("new version", route("one", 2))
        assert sorted(some.running) == ["new version", "stream"]
        queue.release_slot(version("one", 2))


# ---- the queue


async def test_a_tenant_with_many_adapters_fills_half_of_the_queue_and_no_more() -> None:
    queue = shared_queue(permits=1, bounds=QueueBounds(16, 4, 5.0))
    async with crowd(queue) as some:
        await some.start("runs", route("hog"))
        for i in range(8):
            queue.check_room(route("hog", i % 4))
            await some.start(f"waits {i}", route("hog", i % 4))
        for i in range(4):
            with pytest.raises(Overloaded, match="8 requests of this tenant wait") as refusal:
                queue.check_room(route("hog", i))
            assert refusal.value.retry_after_seconds
        for i in range(3):
            queue.check_room(route("other"))
            await some.start(f"other {i}", route("other"))
        queue.check_room(route("third"))


# ---- fairness


@dataclass
class Backlog:
    """Two tenants whose clients ask again and again; the engine makes a token for each a step.

    `versions` and `answers` are each tenant's number of adapters (none: the base model) and the
    tokens of its answers.
    """

    queue: FairQueue
    versions: tuple[int, int]
    answers: tuple[int, int]
    clients: int
    prompt: int = 4
    served: Counter[str] = field(default_factory=Counter)  # weighted tokens, by tenant
    answered: Counter[Route] = field(default_factory=Counter)
    running: list[tuple[Route, QueueGrant, int]] = field(default_factory=list)
    waiting: set[asyncio.Task[None]] = field(default_factory=set)

    async def begin(self) -> None:
        for tenant, count in zip("ab", self.versions, strict=True):
            for number in range(1, count + 1) if count else (0,):
                for _ in range(self.clients):
                    self._ask(route(tenant, number))
        await settle()
        self.served.clear()  # from here on all are backlogged

    async def step(self) -> None:
        before, self.running[:] = list(self.running), []
        for where, turn, left in before:
            turn.charge(1)
            self.served[where.tenant] += OUTPUT_WEIGHT
            if left > 1:
                self.running.append((where, turn, left - 1))
            else:
                self.answered[where] += 1
                self._ask(where)
                turn.end()
        await settle()
        self.waiting = {task for task in self.waiting if not task.done()}

    async def stop(self) -> None:
        for task in self.waiting:
            task.cancel()
        await asyncio.gather(*self.waiting, return_exceptions=True)

    def _ask(self, where: Route) -> None:
        self.waiting.add(asyncio.create_task(self._take(where)))

    async def _take(self, where: Route) -> None:
        turn = await self.queue.take(where, self.prompt)
        self.served[where.tenant] += self.prompt * INPUT_WEIGHT
        self.running.append((where, turn, self.answers["ab".index(where.tenant)]))


@settings(max_examples=30, deadline=None)
@given(
    permits=st.integers(2, 6),
    versions=st.tuples(st.integers(0, 5), st.integers(0, 2)),
    answers=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    is_shared=st.booleans(),
)
def test_of_two_tenants_neither_is_served_more_however_many_adapters_it_has(
    permits: int, versions: tuple[int, int], answers: tuple[int, int], is_shared: bool
) -> None:
    """The bound: what the engine makes in one longest answer. Where room is kept for a third
    tenant, whoever was served less runs as many sequences as it may.
    """

    async def follow() -> None:
        queue = FairQueue(
            permits=permits,
            slots=12,
            bounds=QueueBounds(1000, 1000, 60.0),
            turn_seconds=0.0,
            is_shared=lambda: is_shared,
            clock=Clock(),
        )
        load = Backlog(queue, versions, answers, clients=2 * permits)
        bound = permits * (load.prompt * INPUT_WEIGHT + OUTPUT_WEIGHT) * max(answers)
        share = max(1, permits * 4 // 9)
        await load.begin()
        for _ in range(60):
            await load.step()
            lower = min("ab", key=lambda tenant: load.served[tenant])
            runs = sum(where.tenant == lower for where, _, _ in load.running)
            ahead = max(load.served.values()) - load.served[lower]
            assert ahead <= bound or (is_shared and runs >= share)
        await load.stop()

    asyncio.run(asyncio.wait_for(follow(), 20))


@settings(max_examples=30, deadline=None)
@given(
    permits=st.integers(2, 5),
    slots=st.integers(1, 4),
    versions=st.tuples(st.integers(0, 5), st.integers(0, 3)),
    answers=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    is_shared=st.booleans(),
)
def test_every_version_is_answered_though_there_are_more_of_them_than_slots(
    permits: int,
    slots: int,
    versions: tuple[int, int],
    answers: tuple[int, int],
    is_shared: bool,
) -> None:
    async def follow() -> None:
        queue = FairQueue(
            permits=permits,
            slots=slots,
            bounds=QueueBounds(1000, 1000, 60.0),
            turn_seconds=0.0,
            is_shared=lambda: is_shared,
            clock=Clock(),
        )
        load = Backlog(queue, versions, answers, clients=permits)
        await load.begin()
        flows = max(1, versions[0]) + max(1, versions[1])
        for _ in range(3 * flows * max(answers) + 10):
            await load.step()
        assert len(load.answered) == flows
        await load.stop()

    asyncio.run(asyncio.wait_for(follow(), 20))


# ---- under any schedule


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "finish", "finish", "leave", "load", "unload"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(-1, 3),
        st.integers(0, 9),
        st.integers(0, 3),  # how many turns of the loop pass before the next step
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    steps=STEPS,
    permits=st.integers(1, 12),
    base_permits=st.integers(1, 8),
    slots=st.integers(1, 5),
    is_shared=st.booleans(),
)
def test_whoever_comes_goes_or_gives_up_limits_hold_and_no_place_is_lost(
    steps: list[tuple[str, str, int, int, int]],
    permits: int,
    base_permits: int,
    slots: int,
    is_shared: bool,
) -> None:
    async def follow() -> None:
        queue = FairQueue(
            permits=permits,
            base_permits=base_permits,
            slots=slots,
            bounds=QueueBounds(1000, 1000, 60.0),
            turn_seconds=0.0,
            is_shared=lambda: is_shared,
            clock=Clock(),
        )
        requests: list[Asked] = []
        loading: list[asyncio.Task[None]] = []
        loads: list[AdapterVersion] = []

        async def load(what: AdapterVersion) -> None:
            await queue.acquire_slot(what)
            loads.append(what)

        def check(*, is_settled: bool) -> None:
            alive = [each for each in requests if not each.is_over]
            running = Counter[str]()
            in_base = Counter[str]()
            held: dict[str, set[int]] = {}
            for each in alive:
                running[each.where.tenant] += len(each.running)
                if each.where.mode == "unmerged":
                    in_base[each.where.tenant] += len(each.running)
                if each.where.needs_slot and each.where.version and each.running:
                    held.setdefault(each.where.tenant, set()).add(each.where.version.lora_id)
            assert running.total() <= queue.running <= permits
            assert in_base.total() <= queue.running_in_base_engine <= base_permits
            assert sum(map(len, held.values())) <= queue.slots_in_use <= slots
            if is_shared:
                for tenant in running:
                    assert running[tenant] <= max(1, permits * 4 // 5)
                    assert in_base[tenant] <= max(1, base_permits * 4 // 5)
                    if not loading:
                        assert len(held.get(tenant, ())) <= (slots + 1) // 2
            if not is_settled:
                return
            assert running.total() == queue.running
            waiting = [each for each in alive if not each.begun]
            assert len(waiting) == queue.queued
            has_room = queue.running < permits and queue.running_in_base_engine < base_permits
            for each in waiting:  # nobody with nothing is kept from a place for nothing
                is_plain = each.where == Route(each.where.tenant)
                assert not (has_room and is_plain and not running[each.where.tenant])

        for action, tenant, number, amount, turns in steps:
            alive = [each for each in requests if not each.is_over]
            if action == "start":
                asked = Asked(queue, route(tenant, number), 1 + amount % 4)
                requests.append(asked.start())
            elif action == "finish":
                ends = [end for each in alive for end in each.running]
                if ends:
                    ends[amount % len(ends)].set()
            elif action == "leave" and alive:
                gone = alive[amount % len(alive)].task
                assert gone is not None
                gone.cancel()
            elif action == "load" and number > 0:
                loading.append(asyncio.create_task(load(version(tenant, number))))
            elif action == "unload" and loads:
                queue.release_slot(loads.pop(0))
            elif action == "unload" and loading:
                loading[amount % len(loading)].cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            check(is_settled=False)
        await settle()
        check(is_settled=True)
        while not all(each.is_over for each in requests) or not all(t.done() for t in loading):
            ends = [end for each in requests for end in each.running]
            assert ends or loads, "somebody waits and nobody is served"
            for end in ends:
                end.set()
            while loads:
                queue.release_slot(loads.pop())
            await settle()
            check(is_settled=True)
        while loads:
            queue.release_slot(loads.pop())
        assert (queue.running, queue.in_flight, queue.queued) == (0, 0, 0)
        assert (queue.slots_in_use, queue.awaiting_slot, queue.running_in_base_engine) == (0, 0, 0)
        last = Asked(queue, route("last"), 1).start()
        await settle()
        assert queue.known_tenants == 1  # whoever has left is forgotten
        await leave([last])

    asyncio.run(asyncio.wait_for(follow(), 20))


# ---- in a whole server


async def test_the_engine_runs_no_more_than_it_may_and_another_tenant_is_answered_meanwhile(
    serve_with: ServeWith,
) -> None:
    async with serve_with(engine=EngineConfig(max_num_seqs=5)) as served:
        served.engine.pace_seconds = 0.01
        prompts = ["abcdefghij" * 4, "klmnopqrst" * 4]
        many = asyncio.create_task(
            served.complete(prompts, n=6, max_tokens=40, temperature=1.0, seed=7)
        )
        await until(lambda: len(served.engine.running) == 4, 5)  # of which one is free
        ask = {"model": "base", "prompt": "abc", "max_tokens": 1}
        assert (await served.post("/v1/completions", ask, "globex")).status_code == 200
        most = 0
        while not many.done():
            most = max(most, len(served.engine.running))
            await asyncio.sleep(0.005)
        assert most == 4
        choices = (await many).json()["choices"]
        assert [choice["index"] for choice in choices] == list(range(12))
        assert {len(choice["text"].split()) for choice in choices} == {40}
        assert (await many).json()["usage"]["prompt_tokens"] == 80
        seen = [each for each in served.engine.seen if len(each.prompt_ids) == 40]
        assert sorted(each.sampling.seed or 0 for each in seen) == sorted([*range(7, 13)] * 2)
        assert max(each.rank for each in seen) > 0


async def test_greedy_choices_are_computed_once_and_take_one_place(served: Served) -> None:
    reply = await served.complete("abc", n=3, max_tokens=2, temperature=0)
    assert len(reply.json()["choices"]) == 3
    assert [each.sampling.n for each in served.engine.seen] == [3]


async def test_a_client_that_leaves_gives_all_its_places_back(served: Served) -> None:
    served.engine.pace_seconds = 0.05
    admission = served.server.admission
    async with on_a_socket(served) as client:
        body = {"model": "base", "prompt": ["a" * 50] * 3, "n": 2, "temperature": 1.0}
        asking = asyncio.create_task(client.post("/v1/completions", json={**body}))
        await until(lambda: len(served.engine.running) == 6, 5)
        asking.cancel()
        await until(lambda: admission.present == 0, 5)
    assert not served.engine.running
    assert admission.in_flight == 0
