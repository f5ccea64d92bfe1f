"""Who goes next: places for sequences and slots for adapters, given out together, fairly by tokens.

A request needs a place for each of its sequences (prompts times choices), and one for an adapter
needs one of the engine's slots too, which all requests of that version share. It waits for its
first place and the slot at once and holds neither meanwhile; its other sequences begin as places
come. Next is the tenant that was served least, and of that tenant the flow that was (`flows`), as
long as it leaves room for other tenants (`shares`).

Where a slot is wanted and none can be had, a version that holds one gets no new request, so that
its own end and the slot comes free: one of a tenant with more slots than the one that waits would
have, or else one that was served more. It has had its slot for `turn_seconds` then, so that slots
do not change hands with every request.

While two tenants have requests waiting, what they are served differs by at most what the engine can
make in `turn_seconds` and one longest request; so it is with two flows of one tenant. A decision
costs O(log n) for n flows, for each number of sequences that some waiting tenant runs; where slots
are wanted, a look at each tenant that waits for one, and at each slot.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import nsmallest

from loragate.adapters.names import AdapterVersion
from loragate.server.admission.flows import (
    INPUT_WEIGHT,
    OUTPUT_WEIGHT,
    Flow,
    Parties,
    ReadyTenants,
    Tenant,
    key_of,
    new_flow,
    new_tenant,
)
from loragate.server.admission.shares import AUTOMATIC, Shares, TenantCaps
from loragate.server.core import Route
from loragate.server.errors import AdapterUnavailable, Overloaded, RequestError


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How many requests may wait, of one adapter version or tenant's base requests too, and how
    long.
    """

    max_queued: int
    max_queued_per_adapter: int
    timeout_seconds: float


class Turn:
    """A request's claim on its adapter's slot, and its first place."""

    __slots__ = ("_flow", "_has_first_place", "_queue")

    def __init__(self, queue: "FairQueue", flow: Flow) -> None:
        self._queue = queue
        self._flow = flow
        self._has_first_place = True

    def charge(self, tokens: int) -> None:
        """Counts generated tokens, as they come: what is not made is never charged."""
        self._flow.charge(tokens * OUTPUT_WEIGHT)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[int]:
        """Holds a place for one of the request's sequences, which runs inside; waits for it, but
        for the first one's. There is no limit to that wait: the request runs already, and has a
        deadline of its own.

        Yields the rank of the sequence among those of its tenant, coarsely: 0 for the first, and
        the more of them run the higher. An engine that has too little memory for all that it runs
        takes it from high ranks.
        """
        if self._has_first_place:
            self._has_first_place = False
        else:
            await self._queue.follow(self._flow)
        try:
            yield self._flow.rank
        finally:
            self._queue.give_back_place(self._flow)

    def end(self) -> None:
        """Once all its sequences are over."""
        self._queue.end(self._flow, has_place=self._has_first_place)
        self._has_first_place = False


class FairQueue:
    """Gives places and slots to requests, and slots alone to those who load adapters.

    There are `places` for all engines together, and of these `base_places` for the base model's,
    which must not be more than it runs at once: it takes what is beyond that in the order of
    arrival. Of one event loop; nothing awaits between a look and what follows from it.
    """

    def __init__(
        self,
        *,
        places: int,
        base_places: int | None = None,
        slots: int,
        bounds: QueueBounds,
        turn_seconds: float,
        caps: TenantCaps = AUTOMATIC,
        is_shared: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_shared` says whether there is more than one tenant, active or not."""
        self._places = places
        self._base_places = places if base_places is None else base_places
        self._slots = slots
        self._bounds = bounds
        self._turn_seconds = turn_seconds
        self._shares = {shared: Shares(caps, shared) for shared in (False, True)}
        self._is_shared = is_shared
        self._clock = clock
        self._tenants: Parties[str, Tenant] = Parties()
        self._ready = ReadyTenants(in_base_engine=True)
        self._ready_elsewhere = ReadyTenants(in_base_engine=False)
        self._awaiting: dict[Tenant, None] = {}  # tenants with flows that wait for a slot
        self._calling = 0  # flows that wait for a slot to load, and so need no place
        self._holders: dict[int, Flow] = {}  # of slots, by lora_id
        self._watchers: list[asyncio.Future[None]] = []
        self._ended_at: deque[float] = deque(maxlen=64)
        self.in_flight = 0
        """Requests that have had their turn and are not over."""
        self.running = 0
        """Sequences that hold a place, in all engines."""
        self.running_in_base_engine = 0
        self.queued = 0
        """Requests that wait for their turn."""

    @property
    def leased(self) -> int:
        """Distinct versions that hold a slot now."""
        return len(self._holders)

    @property
    def awaiting_slot(self) -> int:
        """Distinct versions that wait for a slot now."""
        return sum(tenant.awaiting for tenant in self._awaiting)

    @property
    def known_tenants(self) -> int:
        """Of how many tenants something is remembered."""
        return len(self._tenants)

    def check_room(self, route: Route) -> None:
        """Raises Overloaded where a request would have to wait and too many wait already."""
        tenant = self._tenants.find(route.tenant)
        flow = None if tenant is None else tenant.flows.find(key_of(route))
        of_tenant = 0 if tenant is None else tenant.queued
        of_flow = 0 if flow is None else len(flow.waiting)
        room = self._bounds.max_queued - self.queued
        has_share = self._share.may_wait(of_tenant, room)
        if has_share and of_flow < self._bounds.max_queued_per_adapter:
            return
        if self._is_free(tenant, flow, route):
            return
        if room < 1:
            raise Overloaded(
                f"{self.in_flight} requests run and {self.queued} wait: the server is full.",
                retry_after_seconds=self._seconds_for(self.queued),
            )
        if not has_share:
            raise Overloaded(
                f"{of_tenant} requests of this tenant wait already, as many as may.",
                retry_after_seconds=self._seconds_for(of_tenant),
            )
        raise Overloaded(
            f"{of_flow} requests of {route.adapter} wait already, as many as may.",
            retry_after_seconds=self._seconds_for(of_flow),
        )

    async def take(self, route: Route, prompt_tokens: int) -> Turn:
        """Waits for the request's turn; whoever gets one calls its `end`.

        Raises Overloaded, or AdapterUnavailable (`no_adapter_slot`), where none came in time.
        """
        flow = self._join(route)
        flow.enter()
        try:
            await self._take(flow, route, prompt_tokens * INPUT_WEIGHT)
        except BaseException:
            flow.leave()
            raise
        return Turn(self, flow)

    async def _take(self, flow: Flow, route: Route, cost: int) -> None:
        if self._is_free(flow.tenant, flow, route):
            self._start(flow, cost)
            return
        turn = asyncio.get_running_loop().create_future()
        flow.waiting[turn] = cost
        flow.tenant.queued += 1
        self.queued += 1
        try:
            async with self._in_time(flow):
                await self._wait(flow, turn)
        except BaseException:
            if flow.waiting.pop(turn, None) is not None:
                self._leave_queue(flow)
                self._give_up(flow)
            elif turn.done() and not turn.cancelled():
                self._end(flow, has_place=True)  # it came in the same moment: hand it on
            raise

    async def follow(self, flow: Flow) -> None:
        """Waits for a place for a further sequence of a request that has its turn. For `Turn`."""
        if self._may_run(flow.tenant, flow.in_base_engine) and not flow.following:
            self._occupy(flow)
            return
        place = asyncio.get_running_loop().create_future()
        flow.following[place] = None
        try:
            await self._wait(flow, place)
        except BaseException:
            if place in flow.following:
                del flow.following[place]
            elif place.done() and not place.cancelled():
                self.give_back_place(flow)
            raise

    def give_back_place(self, flow: Flow) -> None:
        """For `Turn` alone."""
        self._vacate(flow)
        self._advance()

    def end(self, flow: Flow, *, has_place: bool) -> None:
        """Gives a turn back. For `Turn` alone."""
        self._end(flow, has_place)
        flow.leave()

    async def claim(self, version: AdapterVersion) -> None:
        """Waits for a slot, in turn but without a place; at once where the version has one.

        A tenant's limit of slots does not hold for it: a promotion must not have to wait until the
        tenant's own streams end. Raises AdapterUnavailable (`no_adapter_slot`) where none came in
        time.
        """
        flow = self._join_version(version)
        flow.enter()
        try:
            await self._claim(flow)
        except BaseException:
            flow.leave()
            raise

    async def _claim(self, flow: Flow) -> None:
        if flow.has_slot:
            flow.claims += 1
            return
        call = asyncio.get_running_loop().create_future()
        flow.calls[call] = None
        if flow not in flow.tenant.calling:
            flow.tenant.calling[flow] = None
            self._calling += 1
        try:
            async with self._in_time(flow):
                await self._wait(flow, call)
        except BaseException:
            if call in flow.calls:
                del flow.calls[call]
                self._give_up(flow)
            elif call.done() and not call.cancelled():
                self._unclaim(flow)
            raise

    def may_claim(self, version: AdapterVersion) -> bool:
        """Whether there is a slot for the version now, whose taking keeps nobody waiting."""
        if version.lora_id in self._holders:
            return True
        return self._free_slots > 0 and not self._awaiting

    def try_claim(self, version: AdapterVersion) -> bool:
        """Claims a slot if that keeps nobody waiting."""
        if not self.may_claim(version):
            return False
        flow = self._join_version(version)
        if not flow.has_slot:
            self._hold_slot(flow)
        flow.enter()
        flow.claims += 1
        return True

    def retain(self, version: AdapterVersion) -> None:
        """One more claim on the slot of a version that is claimed."""
        flow = self._holder(version)
        flow.enter()
        flow.claims += 1

    def release(self, version: AdapterVersion) -> None:
        """Gives a claim back."""
        flow = self._holder(version)
        self._unclaim(flow)
        flow.leave()

    def is_claimed(self, lora_id: int) -> bool:
        flow = self._holders.get(lora_id)
        return flow is not None and flow.claims > 0

    async def slot_freed(self) -> None:
        """Returns when a version's last claim ends the next time."""
        freed = asyncio.get_running_loop().create_future()
        self._watchers.append(freed)
        await freed

    # ---- what may be had

    @property
    def _share(self) -> Shares:
        return self._shares[self._is_shared()]

    @property
    def _free_slots(self) -> int:
        return self._slots - len(self._holders)

    @property
    def _free_base_places(self) -> int:
        free = self._base_places - self.running_in_base_engine
        return min(free, self._places - self.running)

    def _may_run(self, tenant: Tenant | None, in_base_engine: bool) -> bool:
        """Whether the tenant may have a further sequence now."""
        running, in_base = (0, 0) if tenant is None else (tenant.running, tenant.in_base_engine)
        share = self._share
        if not share.may_run(running, self._places - self.running):
            return False
        free = self._base_places - self.running_in_base_engine
        return not in_base_engine or share.may_run(in_base, free)

    def _may_run_in_base_engine(self, tenant: Tenant) -> bool:
        return self._may_run(tenant, in_base_engine=True)

    def _may_run_elsewhere(self, tenant: Tenant) -> bool:
        return self._may_run(tenant, in_base_engine=False)

    def _may_hold_slot(self, tenant: Tenant | None) -> bool:
        held = 0 if tenant is None else tenant.slots
        return self._share.may_hold_slot(held, self._free_slots, self._slots)

    def _is_free(self, tenant: Tenant | None, flow: Flow | None, route: Route) -> bool:
        """Whether a newcomer may go at once. Whoever could go has gone already, so those who wait
        wait for something that this one does not need.
        """
        if flow is not None and flow.waiting:
            return False
        if not self._may_run(tenant, _runs_in_base_engine(route)):
            return False
        if not route.needs_slot:
            return True
        if flow is None or not flow.has_slot:
            return self._may_hold_slot(tenant)
        self._recall_slots()
        return not flow.is_recalled

    # ---- coming and going

    def _join(self, route: Route) -> Flow:
        tenant = self._tenants.join(route.tenant, new_tenant(route.tenant))
        key = key_of(route)
        return tenant.flows.join(key, new_flow(tenant, key, _runs_in_base_engine(route)))

    def _join_version(self, version: AdapterVersion) -> Flow:
        return self._join(Route(version.tenant, version))

    def _holder(self, version: AdapterVersion) -> Flow:
        flow = self._holders.get(version.lora_id)
        assert flow is not None, f"nobody holds {version}"
        assert flow.claims, f"nobody holds {version}"
        return flow

    async def _wait(self, flow: Flow, turn: asyncio.Future[None]) -> None:
        self._enlist(flow)
        self._advance()
        await turn

    @asynccontextmanager
    async def _in_time(self, flow: Flow) -> AsyncIterator[None]:
        seconds = self._bounds.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise self._too_late(flow, seconds) from None

    def _too_late(self, flow: Flow, seconds: float) -> RequestError:
        tenant = flow.tenant
        if flow.has_slot or self._may_hold_slot(tenant):
            return Overloaded(
                f"The request waited {seconds:g} s without getting its turn.",
                retry_after_seconds=self._seconds_for(self.queued),
            )
        if self._free_slots or tenant.slots >= self._share.most_loras(self._slots) < self._slots:
            what = f"The {tenant.slots} adapter slots that this tenant may hold now"
            settings = "engine.max_loras or limits.max_loras_per_tenant"
        else:
            what, settings = f"All {self._slots} adapter slots", "engine.max_loras"
        return AdapterUnavailable(
            f"{what} stayed busy for {seconds:g} s; try again, or raise {settings}.",
            code="no_adapter_slot",
            retry_after_seconds=self._seconds_for(len(flow.waiting)),
        )

    def _seconds_for(self, requests: int) -> float:
        """By the measured rate at which requests ended lately; a second for each if none did."""
        if len(self._ended_at) < 2:
            return float(max(1, requests))
        span = self._ended_at[-1] - self._ended_at[0]
        return span / (len(self._ended_at) - 1) * max(1, requests)

    def _enlist(self, flow: Flow) -> None:
        """Notes that it waits, and for what."""
        tenant = flow.tenant
        if flow.is_ready:
            if flow.in_base_engine:
                tenant.ready.add(flow)
                self._ready.add(tenant)
            else:
                tenant.ready_elsewhere.add(flow)
                self._ready_elsewhere.add(tenant)
        if not flow.has_slot and not flow.is_in_line and (flow.waiting or flow.calls):
            flow.is_in_line = True
            tenant.slotless.add(flow)
            tenant.awaiting += 1
            self._awaiting[tenant] = None

    def _leave_line(self, flow: Flow) -> None:
        if not flow.is_in_line:
            return
        flow.is_in_line = False
        self._end_calling(flow)
        tenant = flow.tenant
        tenant.awaiting -= 1
        if not tenant.awaiting:
            del self._awaiting[tenant]
        while len(tenant.promised) > tenant.awaiting:  # nobody is left to want it
            self._end_recall(spared := tenant.promised[-1])
            self._enlist(spared)

    def _leave_queue(self, flow: Flow) -> None:
        """One of its requests waits no longer."""
        self.queued -= 1
        flow.tenant.queued -= 1

    def _give_up(self, flow: Flow) -> None:
        """Somebody of the flow waits for a slot no longer."""
        if not flow.calls:
            self._end_calling(flow)
            if not flow.waiting:
                self._leave_line(flow)
        self._advance()

    def _end_calling(self, flow: Flow) -> None:
        if flow in flow.tenant.calling:
            del flow.tenant.calling[flow]
            self._calling -= 1

    # ---- who goes next

    def _advance(self) -> None:
        """Lets go whoever can, lowest counter first, and says whose slot has to come free."""
        self._recall_slots()  # first: what has just been charged may have put a flow ahead
        while (flow := self._next()) is not None:
            self._serve(flow)
        self._recall_slots()

    def _next(self) -> Flow | None:
        """The lowest of those who can go now; None where nobody can."""
        lowest = self._first_slotless()
        for ready, may_run in (
            (self._ready, self._may_run_in_base_engine),
            (self._ready_elsewhere, self._may_run_elsewhere),
        ):
            flow = ready.first(may_run)
            if flow is not None and (lowest is None or flow.is_before(lowest)):
                lowest = flow
        return lowest

    def _first_slotless(self) -> Flow | None:
        """Of those who wait for a slot and can go on with one, one of the tenant with the fewest
        slots.
        """
        if not self._awaiting or not self._free_slots:
            return None
        if not self._calling and self._free_base_places < 1:
            return None
        for tenant in sorted(self._awaiting, key=_fewest_slots):
            if self._may_hold_slot(tenant) and self._may_run_in_base_engine(tenant):
                return tenant.first_slotless()
            if tenant.calling:
                return next(iter(tenant.calling))
        return None

    def _serve(self, flow: Flow) -> None:
        """Starts the flow's first in line if there is a place, and all who want but its slot."""
        if not flow.has_slot:
            self._leave_line(flow)
            self._hold_slot(flow)
        while flow.calls:
            call, _ = flow.calls.popitem(last=False)
            if not call.done():  # else it was cancelled, and has not woken yet
                call.set_result(None)
                flow.claims += 1
        if self._may_run(flow.tenant, flow.in_base_engine):
            self._start_first(flow)
        if not flow.claims and flow.needs_slot:
            self._drop_slot(flow)  # all have gone
        self._enlist(flow)

    def _start_first(self, flow: Flow) -> None:
        while flow.following:
            place, _ = flow.following.popitem(last=False)
            if not place.done():
                place.set_result(None)
                self._occupy(flow)
                return
        while flow.waiting and not flow.is_recalled:
            turn, cost = flow.waiting.popitem(last=False)
            self._leave_queue(flow)
            if not turn.done():
                turn.set_result(None)
                self._start(flow, cost)
                return

    def _start(self, flow: Flow, cost: int) -> None:
        if not flow.has_slot:
            self._hold_slot(flow)
        self.in_flight += 1
        flow.claims += 1
        self._occupy(flow)
        flow.charge(cost)

    def _occupy(self, flow: Flow) -> None:
        self._count_sequences(flow, 1)

    def _vacate(self, flow: Flow) -> None:
        self._count_sequences(flow, -1)

    def _count_sequences(self, flow: Flow, more: int) -> None:
        tenant = flow.tenant
        self.running += more
        tenant.running += more
        if flow.in_base_engine:
            self.running_in_base_engine += more
            tenant.in_base_engine += more
        self._ready.follow(tenant)
        self._ready_elsewhere.follow(tenant)

    def _end(self, flow: Flow, has_place: bool) -> None:
        self.in_flight -= 1
        if has_place:
            self._vacate(flow)
        self._ended_at.append(self._clock())
        self._unclaim(flow)

    def _unclaim(self, flow: Flow) -> None:
        flow.claims -= 1
        if not flow.claims and flow.needs_slot:
            self._drop_slot(flow)
        self._advance()

    # ---- slots

    def _hold_slot(self, flow: Flow) -> None:
        assert isinstance(flow.key, int)
        flow.has_slot = True
        flow.since = self._clock()
        flow.tenant.slots += 1
        self._holders[flow.key] = flow

    def _drop_slot(self, flow: Flow) -> None:
        assert isinstance(flow.key, int)
        del self._holders[flow.key]
        flow.has_slot = False
        flow.tenant.slots -= 1
        self._end_recall(flow)
        self._enlist(flow)
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()

    def _recall_slots(self) -> None:
        """For each flow that waits for a slot, one is to let go of its own.

        What was recalled stays so until it has drained, or nobody is left to want it: two that are
        close must not take turns at being the one, and neither ever drain.
        """
        while self._awaiting:
            had_enough = self._clock() - self._turn_seconds
            holders = [
                holder
                for holder in self._holders.values()
                if holder.since <= had_enough and not holder.is_recalled
            ]
            if not holders or not self._recall_one(holders):
                return

    def _recall_one(self, holders: list[Flow]) -> bool:
        first = nsmallest(self._slots, self._awaiting, key=_fewest_projected_slots)
        # Others have to wait; but of its own, a tenant may change one for another meanwhile.
        with_slots = (holder.tenant for holder in holders if holder.tenant.awaiting)
        for tenant in dict.fromkeys((*first, *with_slots)):
            if len(tenant.promised) >= tenant.awaiting or not self._lacks_slot_alone(tenant):
                continue
            flow = self._dispensable(holders, tenant)
            if flow is not None:
                flow.is_recalled = True
                flow.recalled_for = tenant
                flow.tenant.recalled += 1
                tenant.promised.append(flow)
                return True
        return False

    def _lacks_slot_alone(self, tenant: Tenant) -> bool:
        """Whether it could go on with a slot: not where it runs as many sequences as it may, and
        would leave the slot unused.
        """
        if self._may_hold_slot(tenant):
            return False
        if tenant.calling or self._may_run_in_base_engine(tenant):
            return True
        return self._free_base_places < 1  # then a place comes by itself

    def _dispensable(self, holders: list[Flow], tenant: Tenant) -> Flow | None:
        """Whose slot has to come free for that tenant, if any has to."""
        first = tenant.first_slotless()
        assert first is not None, f"{tenant.name} waits for no slot"
        has_room = tenant.slots < self._share.most_loras(self._slots)

        def gives_way(holder: Flow) -> bool:
            if holder.tenant is tenant:
                return holder.served > first.served
            more = holder.tenant.projected_slots - tenant.projected_slots
            is_ahead = holder.tenant.served > tenant.served
            return has_room and (more > 1 or (more == 1 and is_ahead))

        return max(
            filter(gives_way, holders),
            key=lambda holder: (
                holder.tenant.projected_slots,
                holder.tenant.served,
                holder.served,
            ),
            default=None,
        )

    def _end_recall(self, flow: Flow) -> None:
        if flow.recalled_for is None:
            return
        flow.recalled_for.promised.remove(flow)
        flow.recalled_for = None
        flow.is_recalled = False
        flow.tenant.recalled -= 1


def _runs_in_base_engine(route: Route) -> bool:
    return route.mode == "unmerged"


def _fewest_slots(tenant: Tenant) -> tuple[int, int]:
    return tenant.slots, tenant.served


def _fewest_projected_slots(tenant: Tenant) -> tuple[int, int]:
    return tenant.projected_slots, tenant.served
