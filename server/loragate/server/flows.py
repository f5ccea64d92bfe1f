"""Flows and what each was served: the virtual token counters of a fair queue.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588). A flow is
an adapter version, or a tenant's use of the base model. Its counter grows with the tokens that it
is served. A flow that comes back is lifted to the lowest counter of those that are there, so that
nobody saves up service while away; and it cannot shed a high counter by leaving for a moment.
"""

import asyncio
import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count

from loragate.server.core import Route

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2  # a step of the engine makes one token, or reads hundreds


@dataclass(slots=True, eq=False)
class Flow:
    """One party to the sharing. `served` is in weighted tokens."""

    key: int | str
    has_slot: bool  # always, where none is needed
    served: int = 0
    claims: int = 0  # on its slot, of whoever runs, loads or holds it; for the base model: who runs
    since: float = 0.0  # when it got its slot, by the queue's clock
    is_recalled: bool = False  # no new request runs, so that its slot comes free
    in_line: tuple[int, int] | None = None  # its key among those without a slot
    waiting: OrderedDict[asyncio.Future[None], int] = field(default_factory=OrderedDict)
    calls: OrderedDict[asyncio.Future[None], None] = field(default_factory=OrderedDict)

    @property
    def needs_slot(self) -> bool:
        return isinstance(self.key, int)

    @property
    def is_active(self) -> bool:
        return bool(self.claims or self.waiting or self.calls)


class LowestFirst:
    """Flows by their counters, lowest first; among equals, who came first.

    Counters only grow, so an entry's key is brought up to date when the entry comes to the front:
    O(log n) for each change of a counter that is noticed, and none for those that are not.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Flow]] = []
        self._members: set[Flow] = set()
        self._order = count()

    def add(self, flow: Flow) -> None:
        """Does nothing where it is in already."""
        if flow not in self._members:
            self._members.add(flow)
            heapq.heappush(self._heap, (flow.served, next(self._order), flow))

    def first(self) -> Flow | None:
        while self._heap:
            served, order, flow = self._heap[0]
            if flow.served == served:
                return flow
            heapq.heapreplace(self._heap, (flow.served, order, flow))
        return None

    def pop(self) -> None:
        """Takes out what `first` has returned."""
        self._members.discard(heapq.heappop(self._heap)[2])


class Flows:
    """All flows that are active, and those whose counters still matter."""

    def __init__(self) -> None:
        self._flows: dict[int | str, Flow] = {}
        self._by_served = LowestFirst()
        self._floor = 0

    def __len__(self) -> int:
        return len(self._flows)

    def find(self, key: int | str) -> Flow | None:
        return self._flows.get(key)

    def join(self, key: int | str) -> Flow:
        """The flow, which is to become active, lifted to the lowest counter of the active ones."""
        flow = self._flows.get(key)
        if flow is not None and flow.is_active:
            return flow
        floor = self._lift_floor()
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(key, has_slot=isinstance(key, str), served=floor)
            self._by_served.add(flow)
        return flow

    def _lift_floor(self) -> int:
        """The lowest counter of an active flow. Idle ones below it are forgotten on the way: were
        they to come back, they would be lifted above what is remembered of them.
        """
        while (flow := self._by_served.first()) is not None:
            self._floor = max(self._floor, flow.served)
            if flow.is_active:
                break
            self._by_served.pop()
            del self._flows[flow.key]
        return self._floor


def key_of(route: Route) -> int | str:
    """An adapter version by its `lora_id`, a merged model by its name, the base model by tenant."""
    if route.version is None:
        return route.tenant
    return route.version.lora_id if route.needs_slot else route.answers
