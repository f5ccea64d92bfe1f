"""Who goes next: permits for sequences and LoRA slots for adapters, given out together, fairly by
tokens.

A request needs a permit for each of its sequences (prompts times choices), and one for an adapter
needs one of the engine's slots too, which all requests of that version share. It waits for its
first permit and the slot at once and holds neither meanwhile; its other sequences begin as permits
come. Next is the tenant that was served least, and of that tenant the flow that was (`flows`), as
long as it leaves room for other tenants (`shares`).

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
from loragate.server.admission.lora_slots import LoraSlots
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


class QueueGrant:
    """A request's right to its adapter's LoRA slot, and its first permit. `end` gives both back."""

    __slots__ = ("_flow", "_has_first_permit", "_queue")

    def __init__(self, queue: "FairQueue", flow: Flow) -> None:
        self._queue = queue
        self._flow = flow
        self._has_first_permit = True

    def charge(self, tokens: int) -> None:
        """Counts generated tokens, as they come: what is not made is never charged."""
        self._flow.charge(tokens * OUTPUT_WEIGHT)

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[int]:
        """Holds a permit for one of the request's sequences, which runs inside; waits for it, but
        for the first one's. There is no limit to that wait: the request runs already, and has a
        deadline of its own.

        Yields the rank of the sequence among those of its tenant, coarsely: 0 for the first, and
        the more of them run the higher. An engine that has too little memory for all that it runs
        takes it from high ranks.
        """
        if self._has_first_permit:
            self._has_first_permit = False
        else:
            await self._queue.acquire_permit(self._flow)
        try:
            yield self._flow.rank
        finally:
            self._queue.release_permit(self._flow)

    def end(self) -> None:
        """Once all its sequences are over."""
        self._queue.end(self._flow, has_permit=self._has_first_permit)
        self._has_first_permit = False


class FairQueue:
    """Gives permits and slots to requests, and slots alone to those who load adapters.

    There are `permits` for all engines together, and of these `base_permits` for the base model's,
    which must not be more than it runs at once: it takes what is beyond that in the order of
    arrival. Of one event loop; nothing awaits between a look and what follows from it.
    """

    def __init__(
        self,
        *,
        permits: int,
        base_permits: int | None = None,
        slots: int,
        bounds: QueueBounds,
        turn_seconds: float,
        caps: TenantCaps = AUTOMATIC,
        is_shared: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_shared` says whether there is more than one tenant, active or not."""
        self._permits = permits
        self._base_permits = permits if base_permits is None else base_permits
        self._bounds = bounds
        self._shares = {shared: Shares(caps, shared) for shared in (False, True)}
        self._is_shared = is_shared
        self._clock = clock
        self._tenants: Parties[str, Tenant] = Parties()
        self._ready = ReadyTenants(in_base_engine=True)
        self._ready_elsewhere = ReadyTenants(in_base_engine=False)
        self._slots = LoraSlots(slots, turn_seconds, lambda: self._share, clock)
        self._ended_at: deque[float] = deque(maxlen=64)
        self.in_flight = 0
        """Requests that hold a grant."""
        self.running = 0
        """Sequences that hold a permit, in all engines."""
        self.running_in_base_engine = 0
        self.queued = 0
        """Requests that wait for their grant."""

    @property
    def slots_in_use(self) -> int:
        """Distinct versions that hold a slot now."""
        return self._slots.in_use

    @property
    def awaiting_slot(self) -> int:
        """Distinct versions that wait for a slot now."""
        return self._slots.awaited

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

    async def take(self, route: Route, prompt_tokens: int) -> QueueGrant:
        """Waits for the request's grant; whoever gets one calls its `end`.

        Raises Overloaded, or AdapterUnavailable (`no_adapter_slot`), where none came in time.
        """
        flow = self._join(route)
        flow.enter()
        try:
            await self._take(flow, route, prompt_tokens * INPUT_WEIGHT)
        except BaseException:
            flow.leave()
            raise
        return QueueGrant(self, flow)

    async def _take(self, flow: Flow, route: Route, cost: int) -> None:
        if self._is_free(flow.tenant, flow, route):
            self._start(flow, cost)
            return
        granted = asyncio.get_running_loop().create_future()
        flow.waiting[granted] = cost
        flow.tenant.queued += 1
        self.queued += 1
        try:
            async with self._in_time(flow):
                await self._wait(flow, granted)
        except BaseException:
            if flow.waiting.pop(granted, None) is not None:
                self._leave_queue(flow)
                self._remove_waiter(flow)
            elif granted.done() and not granted.cancelled():
                self._end(flow, has_permit=True)  # it came in the same moment: hand it on
            raise

    async def acquire_permit(self, flow: Flow) -> None:
        """Waits for a permit for a further sequence of a request that has its grant.
        For `QueueGrant`.
        """
        if self._may_run(flow.tenant, flow.in_base_engine) and not flow.following:
            self._occupy(flow)
            return
        permit = asyncio.get_running_loop().create_future()
        flow.following[permit] = None
        try:
            await self._wait(flow, permit)
        except BaseException:
            if permit in flow.following:
                del flow.following[permit]
            elif permit.done() and not permit.cancelled():
                self.release_permit(flow)
            raise

    def release_permit(self, flow: Flow) -> None:
        """For `QueueGrant` alone."""
        self._vacate(flow)
        self._advance()

    def end(self, flow: Flow, *, has_permit: bool) -> None:
        """Releases a grant. For `QueueGrant` alone."""
        self._end(flow, has_permit)
        flow.leave()

    async def acquire_slot(self, version: AdapterVersion) -> None:
        """Waits for a LoRA slot in the queue's order, without a permit; at once where the version
        has one.

        A tenant's limit of slots does not hold for it: a promotion must not have to wait until the
        tenant's own streams end. Raises AdapterUnavailable (`no_adapter_slot`) where none came in
        time.
        """
        flow = self._join_version(version)
        flow.enter()
        try:
            await self._acquire_slot(flow)
        except BaseException:
            flow.leave()
            raise

    async def _acquire_slot(self, flow: Flow) -> None:
        if flow.has_slot:
            flow.holds += 1
            return
        call = asyncio.get_running_loop().create_future()
        flow.calls[call] = None
        self._slots.begin_calling(flow)
        try:
            async with self._in_time(flow):
                await self._wait(flow, call)
        except BaseException:
            if call in flow.calls:
                del flow.calls[call]
                self._remove_waiter(flow)
            elif call.done() and not call.cancelled():
                self._release_slot(flow)
            raise

    def may_acquire_slot(self, version: AdapterVersion) -> bool:
        """Whether there is a slot for the version now that nobody waits for."""
        if self._slots.holder(version.lora_id) is not None:
            return True
        return self._slots.free > 0 and not self._slots.is_any_awaited

    def try_acquire_slot(self, version: AdapterVersion) -> bool:
        """Acquires a slot if nobody waits for it; says whether it did."""
        if not self.may_acquire_slot(version):
            return False
        flow = self._join_version(version)
        if not flow.has_slot:
            self._slots.hold(flow)
        flow.enter()
        flow.holds += 1
        return True

    def share_slot(self, version: AdapterVersion) -> None:
        """Acquires the slot of a version that has one already, once more."""
        flow = self._holder(version)
        flow.enter()
        flow.holds += 1

    def release_slot(self, version: AdapterVersion) -> None:
        """Undoes one of `acquire_slot`, `try_acquire_slot` and `share_slot`."""
        flow = self._holder(version)
        self._release_slot(flow)
        flow.leave()

    def is_slot_in_use(self, lora_id: int) -> bool:
        flow = self._slots.holder(lora_id)
        return flow is not None and flow.holds > 0

    async def slot_freed(self) -> None:
        """Returns when a version's slot is released by its last holder the next time."""
        await self._slots.freed()

    # ---- what may be had

    @property
    def _share(self) -> Shares:
        return self._shares[self._is_shared()]

    @property
    def _free_base_permits(self) -> int:
        free = self._base_permits - self.running_in_base_engine
        return min(free, self._permits - self.running)

    def _may_run(self, tenant: Tenant | None, in_base_engine: bool) -> bool:
        """Whether the tenant may have a further sequence now."""
        running, in_base = (0, 0) if tenant is None else (tenant.running, tenant.in_base_engine)
        share = self._share
        if not share.may_run(running, self._permits - self.running):
            return False
        free = self._base_permits - self.running_in_base_engine
        return not in_base_engine or share.may_run(in_base, free)

    def _may_run_in_base_engine(self, tenant: Tenant) -> bool:
        return self._may_run(tenant, in_base_engine=True)

    def _may_run_elsewhere(self, tenant: Tenant) -> bool:
        return self._may_run(tenant, in_base_engine=False)

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
            return self._slots.may_hold(tenant)
        self._request_preemptions()
        return not flow.is_preempted

    # ---- coming and going

    def _join(self, route: Route) -> Flow:
        tenant = self._tenants.join(route.tenant, new_tenant(route.tenant))
        key = key_of(route)
        return tenant.flows.join(key, new_flow(tenant, key, _runs_in_base_engine(route)))

    def _join_version(self, version: AdapterVersion) -> Flow:
        return self._join(Route(version.tenant, version))

    def _holder(self, version: AdapterVersion) -> Flow:
        flow = self._slots.holder(version.lora_id)
        assert flow is not None, f"nobody holds {version}"
        assert flow.holds, f"nobody holds {version}"
        return flow

    async def _wait(self, flow: Flow, granted: asyncio.Future[None]) -> None:
        self._enqueue(flow)
        self._advance()
        await granted

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
        if flow.has_slot or self._slots.may_hold(tenant):
            return Overloaded(
                f"The request waited {seconds:g} s without getting its turn.",
                retry_after_seconds=self._seconds_for(self.queued),
            )
        if self._slots.free or tenant.slots >= self._slots.most_of_a_tenant < self._slots.count:
            what = f"The {tenant.slots} adapter slots that this tenant may hold now"
            settings = "engine.max_loras or limits.max_loras_per_tenant"
        else:
            what, settings = f"All {self._slots.count} adapter slots", "engine.max_loras"
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

    def _enqueue(self, flow: Flow) -> None:
        """Notes that it waits, and for what."""
        tenant = flow.tenant
        if flow.is_ready:
            if flow.in_base_engine:
                tenant.ready.add(flow)
                self._ready.add(tenant)
            else:
                tenant.ready_elsewhere.add(flow)
                self._ready_elsewhere.add(tenant)
        self._slots.enqueue(flow)

    def _dequeue(self, flow: Flow) -> None:
        for spared in self._slots.dequeue(flow):
            self._enqueue(spared)

    def _leave_queue(self, flow: Flow) -> None:
        """One of its requests waits no longer."""
        self.queued -= 1
        flow.tenant.queued -= 1

    def _remove_waiter(self, flow: Flow) -> None:
        """Somebody of the flow waits for a slot no longer."""
        if not flow.calls:
            self._slots.end_calling(flow)
            if not flow.waiting:
                self._dequeue(flow)
        self._advance()

    # ---- who goes next

    def _advance(self) -> None:
        """Serves whoever can go on, lowest counter first; preempts whose slots are wanted."""
        self._request_preemptions()  # first: what has just been charged may have put a flow ahead
        while (flow := self._next()) is not None:
            self._serve(flow)
        self._request_preemptions()

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
        """Of those who wait for a slot and can go on with one."""
        if not self._slots.calling and self._free_base_permits < 1:
            return None
        return self._slots.first_waiting(self._may_run_in_base_engine)

    def _serve(self, flow: Flow) -> None:
        """Starts the flow's first in line if there is a permit, and all who want but its slot."""
        if not flow.has_slot:
            self._dequeue(flow)
            self._slots.hold(flow)
        while flow.calls:
            call, _ = flow.calls.popitem(last=False)
            if not call.done():  # else it was cancelled, and has not woken yet
                call.set_result(None)
                flow.holds += 1
        if self._may_run(flow.tenant, flow.in_base_engine):
            self._start_first(flow)
        if not flow.holds and flow.needs_slot:
            self._drop_slot(flow)  # all have gone
        self._enqueue(flow)

    def _start_first(self, flow: Flow) -> None:
        while flow.following:
            permit, _ = flow.following.popitem(last=False)
            if not permit.done():
                permit.set_result(None)
                self._occupy(flow)
                return
        while flow.waiting and not flow.is_preempted:
            granted, cost = flow.waiting.popitem(last=False)
            self._leave_queue(flow)
            if not granted.done():
                granted.set_result(None)
                self._start(flow, cost)
                return

    def _start(self, flow: Flow, cost: int) -> None:
        if not flow.has_slot:
            self._slots.hold(flow)
        self.in_flight += 1
        flow.holds += 1
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

    def _end(self, flow: Flow, has_permit: bool) -> None:
        self.in_flight -= 1
        if has_permit:
            self._vacate(flow)
        self._ended_at.append(self._clock())
        self._release_slot(flow)

    def _release_slot(self, flow: Flow) -> None:
        flow.holds -= 1
        if not flow.holds and flow.needs_slot:
            self._drop_slot(flow)
        self._advance()

    # ---- slots

    def _drop_slot(self, flow: Flow) -> None:
        self._slots.drop(flow)
        self._enqueue(flow)

    def _request_preemptions(self) -> None:
        self._slots.request_preemptions(self._lacks_slot_alone)

    def _lacks_slot_alone(self, tenant: Tenant) -> bool:
        """Whether it could go on with a slot: not where it runs as many sequences as it may, and
        would leave the slot unused.
        """
        if self._slots.may_hold(tenant):
            return False
        if tenant.calling or self._may_run_in_base_engine(tenant):
            return True
        return self._free_base_permits < 1  # then a permit comes by itself


def _runs_in_base_engine(route: Route) -> bool:
    return route.mode == "unmerged"
