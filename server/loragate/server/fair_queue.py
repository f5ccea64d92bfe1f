"""Who goes next: places in flight and adapter slots, given out together, fairly by tokens.

A request needs a place, and one for an adapter needs one of the engine's slots too, which all
requests of that version share. It waits for both at once and holds neither meanwhile. Next is
whoever waits with the lowest counter (`flows`). Where that one needs a slot and all are held, the
version that was served most gets no new request, so that its own end and the slot comes free; it
has had its slot for `turn_seconds` then, so that slots do not change hands with every request.

While two flows have requests waiting, what they are served differs by at most what the engine can
make in `turn_seconds` and one longest answer. A decision costs O(log n) for n waiting flows, and a
look at each slot where one is wanted back.
"""

import asyncio
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loragate.adapters.names import AdapterVersion
from loragate.server.core import Route
from loragate.server.errors import AdapterUnavailable, Overloaded, RequestError
from loragate.server.flows import INPUT_WEIGHT, OUTPUT_WEIGHT, Flow, Flows, LowestFirst, key_of


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How many may wait, of one adapter version or tenant's base requests too, and how long."""

    max_queued: int
    max_queued_per_adapter: int
    timeout_seconds: float


class Turn:
    """A request's place, and its claim on its adapter's slot."""

    __slots__ = ("_flow", "_queue")

    def __init__(self, queue: "FairQueue", flow: Flow) -> None:
        self._queue = queue
        self._flow = flow

    def charge(self, tokens: int) -> None:
        """Counts generated tokens, as they come: what is not made is never charged."""
        self._flow.served += tokens * OUTPUT_WEIGHT

    def end(self) -> None:
        self._queue.end(self._flow)


class FairQueue:
    """Gives `places` and `slots` to requests, and slots alone to those who load adapters.

    Of one event loop; nothing awaits between a look and what follows from it.
    """

    def __init__(
        self,
        *,
        places: int,
        slots: int,
        bounds: QueueBounds,
        turn_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._slots = slots
        self._bounds = bounds
        self._turn_seconds = turn_seconds
        self._clock = clock
        self._flows = Flows()
        self._ready = LowestFirst()  # they wait for a place alone
        self._slotless: list[tuple[int, int, Flow]] = []  # lowest first; nothing charges them
        self._arrivals = 0
        self._holders: set[Flow] = set()
        self._recalled: list[Flow] = []  # never more than there are slotless ones
        self._watchers: list[asyncio.Future[None]] = []
        self._ended_at: deque[float] = deque(maxlen=64)
        self.in_flight = 0
        self.queued = 0

    @property
    def leased(self) -> int:
        """Distinct versions that hold a slot now."""
        return len(self._holders)

    @property
    def awaiting_slot(self) -> int:
        """Distinct versions that wait for a slot now."""
        return len(self._slotless)

    def check_room(self, route: Route) -> None:
        """Raises Overloaded where a request would have to wait and too many wait already."""
        flow = self._flows.find(key_of(route))
        queued = 0 if flow is None else len(flow.waiting)
        is_full = self.queued >= self._bounds.max_queued
        if not is_full and queued < self._bounds.max_queued_per_adapter:
            return
        if self._is_free(flow, needs_slot=route.needs_slot):
            return
        if is_full:
            raise Overloaded(
                f"{self.in_flight} requests run and {self.queued} wait: the server is full.",
                retry_after_seconds=self._seconds_for(self.queued),
            )
        raise Overloaded(
            f"{queued} requests of {route.adapter} wait already, as many as may.",
            retry_after_seconds=self._seconds_for(queued),
        )

    async def take(self, route: Route, prompt_tokens: int) -> Turn:
        """Waits for the request's turn; whoever gets one calls its `end`.

        Raises Overloaded, or AdapterUnavailable (`no_adapter_slot`), where none came in time.
        """
        flow = self._flows.join(key_of(route))
        cost = prompt_tokens * INPUT_WEIGHT
        if self._is_free(flow, needs_slot=route.needs_slot):
            self._start(flow, cost)
            return Turn(self, flow)
        turn = asyncio.get_running_loop().create_future()
        flow.waiting[turn] = cost
        self.queued += 1
        try:
            async with self._in_time(flow):
                await self._wait(flow, turn)
        except BaseException:
            if flow.waiting.pop(turn, None) is not None:
                self.queued -= 1
                self._give_up(flow)
            elif turn.done() and not turn.cancelled():
                self.end(flow)  # the place came in the same moment: hand it on
            raise
        return Turn(self, flow)

    def end(self, flow: Flow) -> None:
        """Gives a turn back. For `Turn` alone."""
        self.in_flight -= 1
        self._ended_at.append(self._clock())
        self._unclaim(flow)

    async def claim(self, version: AdapterVersion) -> None:
        """Waits for a slot, in turn but without a place; at once where the version has one.

        Raises AdapterUnavailable (`no_adapter_slot`) where none came in time.
        """
        flow = self._flows.join(version.lora_id)
        if flow.has_slot:
            flow.claims += 1
            return
        call = asyncio.get_running_loop().create_future()
        flow.calls[call] = None
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

    def try_claim(self, version: AdapterVersion) -> bool:
        """Claims a slot if that keeps nobody waiting."""
        flow = self._flows.join(version.lora_id)
        if not flow.has_slot:
            if self._slotless or not self._has_free_slot:
                return False
            self._hold_slot(flow)
        flow.claims += 1
        return True

    def retain(self, version: AdapterVersion) -> None:
        """One more claim on the slot of a version that is claimed."""
        flow = self._flows.join(version.lora_id)
        assert flow.claims, f"nobody holds {version}"
        flow.claims += 1

    def release(self, version: AdapterVersion) -> None:
        """Gives a claim back."""
        flow = self._flows.find(version.lora_id)
        assert flow is not None, f"nobody holds {version}"
        self._unclaim(flow)

    def is_claimed(self, lora_id: int) -> bool:
        flow = self._flows.find(lora_id)
        return flow is not None and flow.claims > 0

    async def slot_freed(self) -> None:
        """Returns when a version's last claim ends the next time."""
        freed = asyncio.get_running_loop().create_future()
        self._watchers.append(freed)
        await freed

    @property
    def _has_free_slot(self) -> bool:
        return len(self._holders) < self._slots

    def _is_free(self, flow: Flow | None, needs_slot: bool) -> bool:
        """Whether a newcomer may go at once. With a place free, only those wait who have no slot;
        with a slot free too, nobody does.
        """
        if self.in_flight >= self._places:
            return False
        if not needs_slot:
            return True
        if flow is None or not flow.has_slot:
            return self._has_free_slot
        self._recall_slots()
        return not flow.is_recalled

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
        if flow.has_slot or self._has_free_slot:
            return Overloaded(
                f"The request waited {seconds:g} s without getting its turn.",
                retry_after_seconds=self._seconds_for(self.queued),
            )
        return AdapterUnavailable(
            f"All {self._slots} adapter slots stayed busy for {seconds:g} s; try again, or raise "
            "engine.max_loras.",
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
        if flow.has_slot:
            if flow.waiting and not flow.is_recalled:
                self._ready.add(flow)
        elif flow.in_line is None:
            self._arrivals += 1
            flow.in_line = (flow.served, self._arrivals)
            insort(self._slotless, (*flow.in_line, flow))

    def _leave_line(self, flow: Flow) -> None:
        if flow.in_line is not None:
            del self._slotless[bisect_left(self._slotless, flow.in_line)]
            flow.in_line = None

    def _give_up(self, flow: Flow) -> None:
        """Somebody of the flow waits no longer."""
        if not flow.waiting and not flow.calls:
            self._leave_line(flow)
        self._advance()

    def _advance(self) -> None:
        """Lets go whoever can, lowest counter first, and says whose slot has to come free."""
        self._spare()
        while (flow := self._next()) is not None:
            self._serve(flow)
            self._spare()
        self._recall_slots()

    def _next(self) -> Flow | None:
        """The lowest of those who can go now; None where nobody can."""
        slotless = self._slotless if self._has_free_slot else ()
        if self.in_flight >= self._places:
            return next((flow for _, _, flow in slotless if flow.calls), None)
        ready = self._first_ready()
        if slotless and (ready is None or slotless[0][0] <= ready.served):
            return slotless[0][2]
        return ready

    def _first_ready(self) -> Flow | None:
        while (flow := self._ready.first()) is not None:
            if flow.waiting and flow.has_slot and not flow.is_recalled:
                return flow
            self._ready.pop()
        return None

    def _serve(self, flow: Flow) -> None:
        """Starts the flow's first request if there is a place, and all who want but its slot."""
        if not flow.has_slot:
            self._leave_line(flow)
            self._hold_slot(flow)
        while flow.calls:
            call, _ = flow.calls.popitem(last=False)
            if not call.done():  # else it was cancelled, and has not woken yet
                call.set_result(None)
                flow.claims += 1
        if self.in_flight < self._places:
            self._start_first(flow)
        if not flow.claims:
            self._drop_slot(flow)  # all have gone
        elif flow.waiting:
            self._enlist(flow)

    def _start_first(self, flow: Flow) -> None:
        while flow.waiting:
            turn, cost = flow.waiting.popitem(last=False)
            self.queued -= 1
            if not turn.done():
                turn.set_result(None)
                self._start(flow, cost)
                return

    def _start(self, flow: Flow, cost: int) -> None:
        if not flow.has_slot:
            self._hold_slot(flow)
        self.in_flight += 1
        flow.claims += 1
        flow.served += cost

    def _unclaim(self, flow: Flow) -> None:
        flow.claims -= 1
        if not flow.claims:
            self._drop_slot(flow)
        self._advance()

    def _hold_slot(self, flow: Flow) -> None:
        flow.has_slot = True
        flow.since = self._clock()
        self._holders.add(flow)

    def _drop_slot(self, flow: Flow) -> None:
        if not flow.needs_slot:
            return
        self._holders.discard(flow)
        flow.has_slot = False
        if flow.is_recalled:
            flow.is_recalled = False
            self._recalled.remove(flow)
        if flow.waiting:
            self._enlist(flow)
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()

    def _recall_slots(self) -> None:
        """For each flow that waits for a slot, one that was served more is to let go of its own.

        What was recalled stays so until it has drained, or nobody is left to want it: two that are
        close must not take turns at being the one, and neither ever drain.
        """
        if self._has_free_slot:
            return
        while len(self._recalled) < len(self._slotless):
            served = self._slotless[len(self._recalled)][0]
            had_enough = self._clock() - self._turn_seconds
            flow = max(
                (
                    holder
                    for holder in self._holders
                    if holder.served > served
                    and holder.since <= had_enough
                    and not holder.is_recalled
                ),
                key=lambda holder: holder.served,
                default=None,
            )
            if flow is None:
                return
            flow.is_recalled = True
            self._recalled.append(flow)

    def _spare(self) -> None:
        """Ends recalls that nobody is left to want."""
        while len(self._recalled) > len(self._slotless):
            flow = self._recalled.pop()
            flow.is_recalled = False
            self._enlist(flow)
