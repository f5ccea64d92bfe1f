"""Tenants, their flows, and what each was served: the virtual token counters of a fair queue.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588), on two
levels. First a tenant is chosen, then one of its flows: an adapter version, a merged model, or
the tenant's use of the base model. So a tenant gets one share, over however many versions it sends
its requests. A counter grows with the tokens that are served. Who comes back is lifted to the
lowest counter of those that are there, so that nobody saves up service while away; and nobody sheds
a high counter by leaving for a moment.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

from loragate.server.core import Route

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2  # a step of the engine makes one token, or reads hundreds


class Served(Protocol):
    """Whatever has a counter, in weighted tokens, which only grows."""

    @property
    def served(self) -> int: ...


class Party(Served, Protocol):
    """Whoever shares; idle while none of its requests is there."""

    @property
    def is_active(self) -> bool: ...


Counted = TypeVar("Counted", bound=Served)
Key = TypeVar("Key", bound=Hashable)
Sharing = TypeVar("Sharing", bound=Party)


class LowestFirst(Generic[Counted]):
    """Things by their counters, lowest first; among equals, who came first.

    Counters only grow, so an entry's key is brought up to date when the entry comes to the front:
    O(log n) for each change of a counter that is noticed, and none for those that are not.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Counted]] = []
        self._orders: dict[Counted, int] = {}  # of entries that are not out of date
        self._order = count()

    def __len__(self) -> int:
        return len(self._orders)

    def add(self, item: Counted) -> None:
        """Does nothing where it is in already."""
        if item not in self._orders:
            order = self._orders[item] = next(self._order)
            heapq.heappush(self._heap, (item.served, order, item))

    def discard(self, item: Counted) -> None:
        """Its entry stays until it comes to the front, or until there are too many of that kind."""
        self._orders.pop(item, None)
        if len(self._heap) > 2 * len(self._orders) + 16:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    def first(self) -> Counted | None:
        while self._heap:
            entry = served, order, item = self._heap[0]
            if not self._is_current(entry):
                heapq.heappop(self._heap)
            elif item.served == served:
                return item
            else:
                heapq.heapreplace(self._heap, (item.served, order, item))
        return None

    def pop(self) -> None:
        """Takes out what `first` has returned."""
        _, _, item = heapq.heappop(self._heap)
        del self._orders[item]

    def _is_current(self, entry: tuple[int, int, Counted]) -> bool:
        _, order, item = entry
        return self._orders.get(item) == order


class Parties(Generic[Key, Sharing]):
    """All that are active, and those whose counters still matter."""

    def __init__(self) -> None:
        self._parties: dict[Key, Sharing] = {}
        self._by_served: LowestFirst[Sharing] = LowestFirst()
        self._keys: dict[Sharing, Key] = {}
        self._floor = 0

    def __len__(self) -> int:
        return len(self._parties)

    def find(self, key: Key) -> Sharing | None:
        return self._parties.get(key)

    def join(self, key: Key, make: Callable[[int], Sharing]) -> Sharing:
        """The party, which is to become active, lifted to the lowest counter of the active ones.

        `make` makes it with a counter to begin at.
        """
        party = self._parties.get(key)
        if party is not None and party.is_active:
            return party
        floor = self._lift_floor()
        party = self._parties.get(key)
        if party is None:
            party = self._parties[key] = make(floor)
            self._keys[party] = key
            self._by_served.add(party)
        return party

    def _lift_floor(self) -> int:
        """The lowest counter of an active party. Idle ones below it are forgotten on the way: were
        they to come back, they would be lifted above what is remembered of them.
        """
        while (party := self._by_served.first()) is not None:
            self._floor = max(self._floor, party.served)
            if party.is_active:
                break
            self._by_served.pop()
            del self._parties[self._keys.pop(party)]
        return self._floor


@dataclass(slots=True, eq=False)
class Tenant:
    """One party to the sharing, with all its flows.

    `running` counts its sequences in all engines, `in_base_engine` those in the base model's.
    """

    name: str
    served: int
    present: int = 0  # requests and holders of slots that are there, waiting or not
    running: int = 0
    in_base_engine: int = 0
    queued: int = 0  # requests that wait for their first permit
    slots: int = 0
    preempted: int = 0  # of its slots
    awaiting: int = 0  # its flows that wait for a slot
    flows: "Parties[int | str, Flow]" = field(default_factory=Parties)
    # Flows that wait for a permit alone, by the engine that it is in; entries may be out of date.
    ready: "LowestFirst[Flow]" = field(default_factory=LowestFirst)
    ready_elsewhere: "LowestFirst[Flow]" = field(default_factory=LowestFirst)
    slotless: "LowestFirst[Flow]" = field(default_factory=LowestFirst)
    calling: "OrderedDict[Flow, None]" = field(default_factory=OrderedDict)  # slotless, to load
    promised: "list[Flow]" = field(default_factory=list)  # preempted for it; at most `awaiting`

    @property
    def is_active(self) -> bool:
        return self.present > 0

    @property
    def projected_slots(self) -> int:
        """How many it holds once what is preempted has changed hands."""
        return self.slots - self.preempted + len(self.promised)

    def first_slotless(self) -> "Flow | None":
        """The lowest of its flows that wait for a slot."""
        while (flow := self.slotless.first()) is not None:
            if flow.is_awaiting_slot:
                return flow
            self.slotless.pop()
        return None

    def first_ready(self, in_base_engine: bool) -> "Flow | None":
        """The lowest of its flows that wait for a permit in that kind of engine alone."""
        ready = self.ready if in_base_engine else self.ready_elsewhere
        while (flow := ready.first()) is not None:
            if flow.is_ready:
                return flow
            ready.pop()
        return None


class ReadyTenants:
    """Tenants with flows that wait for a permit in one kind of engine, and for nothing else.

    They are kept by how many sequences they run, on which it depends whether they may have one
    more: so those that are at their limit are passed over together.
    """

    def __init__(self, in_base_engine: bool) -> None:
        self._in_base_engine = in_base_engine
        self._by_group: dict[tuple[int, int], LowestFirst[Tenant]] = {}
        self._groups: dict[Tenant, tuple[int, int]] = {}

    def add(self, tenant: Tenant) -> None:
        """It has such a flow; does nothing where that is known."""
        if tenant not in self._groups:
            self._put(tenant)

    def follow(self, tenant: Tenant) -> None:
        """It runs more or fewer sequences than before."""
        if tenant in self._groups:
            self._take_out(tenant)
            self._put(tenant)

    def first(self, may_run: Callable[[Tenant], bool]) -> "Flow | None":
        """The lowest flow of the lowest tenant that may run one more."""
        lowest: Flow | None = None
        for line in tuple(self._by_group.values()):
            flow = self._first_of(line)
            if flow is None or (lowest is not None and not flow.is_before(lowest)):
                continue
            if may_run(flow.tenant):
                lowest = flow
        return lowest

    def _first_of(self, line: "LowestFirst[Tenant]") -> "Flow | None":
        while (tenant := line.first()) is not None:
            flow = tenant.first_ready(self._in_base_engine)
            if flow is not None:
                return flow
            self._take_out(tenant)
        return None

    def _put(self, tenant: Tenant) -> None:
        group = self._groups[tenant] = (tenant.running, tenant.in_base_engine)
        self._by_group.setdefault(group, LowestFirst()).add(tenant)

    def _take_out(self, tenant: Tenant) -> None:
        group = self._groups.pop(tenant)
        line = self._by_group[group]
        line.discard(tenant)
        if not len(line):
            del self._by_group[group]


@dataclass(slots=True, eq=False)
class Flow:
    """One of a tenant's parties among themselves. `served` is in weighted tokens."""

    key: int | str
    tenant: Tenant
    served: int
    needs_slot: bool
    in_base_engine: bool
    has_slot: bool  # always, where none is needed
    present: int = 0  # requests and holders of slots that are there, waiting or not
    holds: int = 0  # on its slot, of whoever runs, loads or holds it; for the base model: who runs
    since: float = 0.0  # when it got its slot, by the queue's clock
    is_preempted: bool = False  # no new request runs, so that its slot comes free
    preempted_for: Tenant | None = None
    is_awaiting_slot: bool = False  # it waits for a slot
    # By what they wake, with what they are charged: requests that wait for their first permit.
    waiting: OrderedDict[asyncio.Future[None], int] = field(default_factory=OrderedDict)
    # Further sequences of requests that run already, and who needs a slot without a permit.
    following: OrderedDict[asyncio.Future[None], None] = field(default_factory=OrderedDict)
    calls: OrderedDict[asyncio.Future[None], None] = field(default_factory=OrderedDict)

    @property
    def is_active(self) -> bool:
        return self.present > 0

    @property
    def is_ready(self) -> bool:
        """Whether a permit is all that somebody waits for. Who runs already is not held up by a
        preemption, which waits for its end.
        """
        return bool(self.following or (self.waiting and self.has_slot and not self.is_preempted))

    @property
    def rank(self) -> int:
        """How many more sequences its tenant runs in the engine, coarsely: 0 for 0, 1 for 1, 2 for
        2 and 3, 3 for 4 to 7, and so on.
        """
        running = self.tenant.in_base_engine if self.in_base_engine else self.tenant.running
        return max(0, running - 1).bit_length()

    def is_before(self, other: "Flow") -> bool:
        """Whether it is served before the other; the other is where they are equal."""
        if self.tenant is other.tenant:
            return self.served < other.served
        return self.tenant.served < other.tenant.served

    def enter(self) -> None:
        """A request, or somebody who needs a slot alone, comes."""
        self.present += 1
        self.tenant.present += 1

    def leave(self) -> None:
        """What has come is over, or has given up."""
        self.present -= 1
        self.tenant.present -= 1

    def charge(self, weighted_tokens: int) -> None:
        self.served += weighted_tokens
        self.tenant.served += weighted_tokens


def new_tenant(name: str) -> Callable[[int], Tenant]:
    return lambda served: Tenant(name, served)


def new_flow(tenant: Tenant, key: int | str, in_base_engine: bool) -> Callable[[int], Flow]:
    """An integer is the `lora_id` of an adapter version, which needs a slot."""
    needs_slot = isinstance(key, int)

    def make(served: int) -> Flow:
        return Flow(key, tenant, served, needs_slot, in_base_engine, has_slot=not needs_slot)

    return make


def key_of(route: Route) -> int | str:
    """Of a flow among its tenant's: an adapter version by its `lora_id`, a merged model and the
    base model by their names.
    """
    if route.version is not None and route.needs_slot:
        return route.version.lora_id
    return route.answers
