"""Who asks what, and when: drawn from one seed, so that two runs ask the same.

Arrival times are drawn before the run and do not wait for answers: a slow server cannot slow
down those who ask it, which would hide how slow it is.
"""

import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from loadtests.scenarios import Phase, Scenario
from loadtests.target import BASE, Protocol, Target

_TEXT = (
    "a bridge carries water over the old road while seven birds follow one grey boat toward "
    "quiet hills where nobody asks about morning rain or counts how many small stones were left "
    "beside that wall since last winter because people who live there like to sing and bake bread "
    "with salt butter honey and apples from trees behind their houses near green fields"
)
_WORDS = _TEXT.split()

Client = Literal["stays", "leaves", "lingers"]
FLOOD = "flood"  # the label of what the flooder asks
_PATIENCE_SECONDS = 3.0  # of a client that leaves, at most; of one that lingers, always


class Mix(msgspec.Struct, frozen=True):
    """What requests look like; a length is drawn evenly from those given."""

    prompt_words: tuple[int, ...] = (8, 24, 96)
    output_tokens: tuple[int, ...] = (16, 32, 64)
    skew: float = 1.0
    base_share: float = 0.1
    protocols: tuple[Protocol, ...] = ("http", "grpc")

    def named(self) -> dict[str, str]:
        """For a report."""
        return {
            "prompt words": ", ".join(map(str, self.prompt_words)),
            "output tokens": ", ".join(map(str, self.output_tokens)),
            "skew over adapters (Zipf)": f"{self.skew:g}",
            "share of the base model": f"{self.base_share:g}",
        }


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to make. `at` is None where it follows another one's end."""

    index: int
    at: float | None
    phase: str
    protocol: Protocol
    tenant: str
    adapter: str  # as reports name it: `acme/support`, `base`
    model: str  # as the request names it
    prompt: str
    output_tokens: int
    client: Client = "stays"
    patience_seconds: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Timed:
    """A phase with its place in the run. Rates are requests a second."""

    phase: Phase
    starts: float
    seconds: float
    rate: float
    flood: float

    @property
    def ends(self) -> float:
        return self.starts + self.seconds


class Plan:
    """All requests of a run, in order, without making any."""

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        mix: Mix,
        *,
        rate: float,
        duration_seconds: float,
        seed: int,
    ) -> None:
        self._target = target
        self._mix = mix
        self._seed = seed
        self._choices = _ranked(target)
        self._weights = [1 / rank**mix.skew for rank in range(1, len(self._choices) + 1)]
        starts, self.phases = 0.0, []
        for phase in scenario.phases:
            seconds = phase.share * duration_seconds
            self.phases.append(Timed(phase, starts, seconds, phase.rate * rate, phase.flood * rate))
            starts += seconds
        self.seconds = starts

    def arrivals(self, timed: Timed) -> Iterator[Ask]:
        """The open arrivals of a phase, over both protocols, in the order of their times."""
        ordinary = ((at, False) for at in self._times(timed, timed.rate, "ordinary"))
        flooding = ((at, True) for at in self._times(timed, timed.flood, "flood"))
        for index, (at, is_flood) in enumerate(heapq.merge(ordinary, flooding)):
            yield self._draw(timed.phase, index, at, is_flood)

    def successive(self, timed: Timed, protocol: Protocol) -> Iterator[Ask]:
        """Requests of a phase with streams: without an end, over one protocol."""
        for index in itertools.count():
            yield self._draw(timed.phase, index, None, False, protocol)

    def streams_of(self, timed: Timed, protocol: Protocol) -> int:
        """How many of a phase's streams go over this protocol."""
        protocols = self._mix.protocols
        if protocol not in protocols:
            return 0
        share, rest = divmod(timed.phase.streams, len(protocols))
        return share + (protocols.index(protocol) < rest)

    def _times(self, timed: Timed, rate: float, source: str) -> Iterator[float]:
        """A Poisson process."""
        draw = random.Random(f"{self._seed}/{timed.phase.name}/{source}")
        at = timed.starts
        while rate > 0 and (at := at + draw.expovariate(rate)) < timed.ends:
            yield at

    def _draw(
        self,
        phase: Phase,
        index: int,
        at: float | None,
        is_flood: bool,
        protocol: Protocol | None = None,
    ) -> Ask:
        # A generator of its own for each: what one request is depends on no other.
        draw = random.Random(f"{self._seed}/{phase.name}/{protocol}/{index}")
        words = draw.choices(_WORDS, k=draw.choice(self._mix.prompt_words))
        tenant, name, label = self._whom(phase, index, is_flood, draw)
        client = _client(phase, draw)
        patience = draw.uniform(0, _PATIENCE_SECONDS) if client == "leaves" else _PATIENCE_SECONDS
        return Ask(
            index=index,
            at=at,
            phase=phase.name,
            protocol=protocol or draw.choice(self._mix.protocols),
            tenant=tenant,
            adapter=BASE if name == self._target.base else f"{tenant}/{name}",
            model=self._target.merged[f"{tenant}/{name}"] if label == "merged" else name,
            prompt=" ".join(words),
            output_tokens=draw.choice(self._mix.output_tokens),
            client=client,
            patience_seconds=patience,
            label=label,
        )

    def _whom(
        self, phase: Phase, index: int, is_flood: bool, draw: random.Random
    ) -> tuple[str, str, str]:
        """Tenant, model and label."""
        if is_flood and self._target.flooder is not None:
            return self._target.flooder.name, self._target.base, FLOOD
        if phase.asking == "mixed":
            if not self._choices or draw.random() < self._mix.base_share:
                return draw.choice(self._target.tenants).name, self._target.base, ""
            return (*draw.choices(self._choices, self._weights)[0], "")
        pair, is_second = divmod(index, 2)
        labels = ("cold", "warm") if phase.asking == "cold pairs" else ("unmerged", "merged")
        return (*self._choices[pair % len(self._choices)], labels[is_second])


def _ranked(target: Target) -> list[tuple[str, str]]:
    """Adapters from the most to the least asked for; tenants take turns."""
    of_tenants = [
        [(tenant.name, adapter.name) for adapter in tenant.adapters] for tenant in target.tenants
    ]
    turns = itertools.zip_longest(*of_tenants)
    return [adapter for turn in turns for adapter in turn if adapter is not None]


def _client(phase: Phase, draw: random.Random) -> Client:
    at = draw.random()
    if at < phase.leaving:
        return "leaves"
    return "lingers" if at < phase.leaving + phase.lingering else "stays"
