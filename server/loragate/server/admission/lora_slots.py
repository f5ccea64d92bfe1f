"""The engine's LoRA slots: which flow holds each, who waits for one, and whose is to come free.

Where a slot is wanted and none can be had, a version that holds one gets no new request, so that
its own end and the slot comes free: one of a tenant with more slots than the one that waits would
have, or else one that was served more. It has had its slot for `turn_seconds` then, so that slots
do not change hands with every request.
"""

import asyncio
from collections.abc import Callable
from heapq import nsmallest

from loragate.server.admission.flows import Flow, Tenant
from loragate.server.admission.shares import Shares


class LoraSlots:
    """Of one event loop; nothing awaits between a look and what follows from it."""

    def __init__(
        self,
        count: int,
        turn_seconds: float,
        share: Callable[[], Shares],
        clock: Callable[[], float],
    ) -> None:
        """`share` is asked for what a tenant may hold now; `clock` is in seconds."""
        self.count = count
        self._turn_seconds = turn_seconds
        self._share = share
        self._clock = clock
        self._holders: dict[int, Flow] = {}  # by lora_id
        self._awaiting: dict[Tenant, None] = {}  # tenants with flows that wait
        self._watchers: list[asyncio.Future[None]] = []
        self.calling = 0
        """Flows that wait for a slot to load an adapter, and so need no permit."""

    @property
    def in_use(self) -> int:
        return len(self._holders)

    @property
    def free(self) -> int:
        return self.count - len(self._holders)

    @property
    def awaited(self) -> int:
        """How many flows wait for a slot."""
        return sum(tenant.awaiting for tenant in self._awaiting)

    @property
    def is_any_awaited(self) -> bool:
        return bool(self._awaiting)

    @property
    def most_of_a_tenant(self) -> int:
        return self._share().most_loras(self.count)

    def holder(self, lora_id: int) -> Flow | None:
        return self._holders.get(lora_id)

    def may_hold(self, tenant: Tenant | None) -> bool:
        """Whether the tenant may have a further slot now; None is a tenant that holds nothing."""
        held = 0 if tenant is None else tenant.slots
        return self._share().may_hold_slot(held, self.free, self.count)

    def hold(self, flow: Flow) -> None:
        assert isinstance(flow.key, int)
        flow.has_slot = True
        flow.since = self._clock()
        flow.tenant.slots += 1
        self._holders[flow.key] = flow

    def drop(self, flow: Flow) -> None:
        """Releases the flow's slot, and wakes whoever waits in `freed`."""
        assert isinstance(flow.key, int)
        del self._holders[flow.key]
        flow.has_slot = False
        flow.tenant.slots -= 1
        self._cancel_preemption(flow)
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()

    async def freed(self) -> None:
        """Returns when a slot comes free the next time."""
        freed = asyncio.get_running_loop().create_future()
        self._watchers.append(freed)
        await freed

    # ---- who waits

    def enqueue(self, flow: Flow) -> None:
        """The flow waits for a slot; does nothing where that is known, or where it has one."""
        if flow.has_slot or flow.is_awaiting_slot or not (flow.waiting or flow.calls):
            return
        flow.is_awaiting_slot = True
        tenant = flow.tenant
        tenant.slotless.add(flow)
        tenant.awaiting += 1
        self._awaiting[tenant] = None

    def dequeue(self, flow: Flow) -> list[Flow]:
        """The flow waits no longer. Returns flows that may run again, since nobody is left to want
        the slots that they were to give up.
        """
        if not flow.is_awaiting_slot:
            return []
        flow.is_awaiting_slot = False
        self.end_calling(flow)
        tenant = flow.tenant
        tenant.awaiting -= 1
        if not tenant.awaiting:
            del self._awaiting[tenant]
        spared: list[Flow] = []
        while len(tenant.promised) > tenant.awaiting:
            spared.append(tenant.promised[-1])
            self._cancel_preemption(spared[-1])
        return spared

    def begin_calling(self, flow: Flow) -> None:
        if flow not in flow.tenant.calling:
            flow.tenant.calling[flow] = None
            self.calling += 1

    def end_calling(self, flow: Flow) -> None:
        if flow in flow.tenant.calling:
            del flow.tenant.calling[flow]
            self.calling -= 1

    def first_waiting(self, may_run: Callable[[Tenant], bool]) -> Flow | None:
        """Of those who wait for a slot and can go on with one, one of the tenant with the fewest.

        `may_run` says whether a tenant may have a further sequence, which who loads does not need.
        """
        if not self._awaiting or not self.free:
            return None
        for tenant in sorted(self._awaiting, key=_fewest_slots):
            if self.may_hold(tenant) and may_run(tenant):
                return tenant.first_slotless()
            if tenant.calling:
                return next(iter(tenant.calling))
        return None

    # ---- whose slot comes free

    def request_preemptions(self, lacks_slot_alone: Callable[[Tenant], bool]) -> None:
        """For each flow that waits for a slot, preempts one that holds a slot.

        `lacks_slot_alone` says whether a tenant could go on with a slot. A flow stays
        preempted until it has drained, or nobody waits for its slot any more: two that are close
        must not alternate, or neither would ever drain.
        """
        while self._awaiting:
            had_enough = self._clock() - self._turn_seconds
            holders = [
                holder
                for holder in self._holders.values()
                if holder.since <= had_enough and not holder.is_preempted
            ]
            if not holders or not self._preempt_one(holders, lacks_slot_alone):
                return

    def _preempt_one(self, holders: list[Flow], lacks_slot_alone: Callable[[Tenant], bool]) -> bool:
        first = nsmallest(self.count, self._awaiting, key=_fewest_projected_slots)
        # Others have to wait; but of its own, a tenant may change one for another meanwhile.
        with_slots = (holder.tenant for holder in holders if holder.tenant.awaiting)
        for tenant in dict.fromkeys((*first, *with_slots)):
            if len(tenant.promised) >= tenant.awaiting or not lacks_slot_alone(tenant):
                continue
            flow = self._dispensable(holders, tenant)
            if flow is not None:
                flow.is_preempted = True
                flow.preempted_for = tenant
                flow.tenant.preempted += 1
                tenant.promised.append(flow)
                return True
        return False

    def _dispensable(self, holders: list[Flow], tenant: Tenant) -> Flow | None:
        """Whose slot has to come free for that tenant, if any has to."""
        first = tenant.first_slotless()
        assert first is not None, f"{tenant.name} waits for no slot"
        has_room = tenant.slots < self.most_of_a_tenant

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

    def _cancel_preemption(self, flow: Flow) -> None:
        if flow.preempted_for is None:
            return
        flow.preempted_for.promised.remove(flow)
        flow.preempted_for = None
        flow.is_preempted = False
        flow.tenant.preempted -= 1


def _fewest_slots(tenant: Tenant) -> tuple[int, int]:
    return tenant.slots, tenant.served


def _fewest_projected_slots(tenant: Tenant) -> tuple[int, int]:
    return tenant.projected_slots, tenant.served
