"""What is done to the server. A scenario is data; rates and lengths are shares of the options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Asking = Literal["mixed", "cold pairs", "merged pairs"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run.

    `rate` and `flood` are multiples of `--rate`: open arrivals of the ordinary tenants and of the
    flooder. With `streams` there are that many requests at a time instead, one after another.
    `leaving` and `lingering` are shares of the clients.
    """

    name: str
    share: float
    rate: float = 0.0
    flood: float = 0.0
    streams: int = 0
    leaving: float = 0.0
    lingering: float = 0.0
    asking: Asking = "mixed"


@dataclass(frozen=True, slots=True)
class Scenario:
    """`server` are settings for a server that the suite starts itself."""

    name: str
    about: str
    phases: tuple[Phase, ...]
    duration_seconds: float = 60.0
    tenants: int = 2
    adapters: int = 4  # of each tenant
    versions: int = 1
    skew: float = 1.0  # of Zipf's law over the adapters; 0: all alike
    base_share: float = 0.1
    swap_every_seconds: float = 0.0
    stops_server: bool = False
    flooder_limits: Mapping[str, int] = field(default_factory=dict)
    server: Mapping[str, str] = field(default_factory=dict)


_SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)

_ALL = (
    Scenario(
        "steady",
        "Requests arrive at one rate, whatever the server does.",
        (Phase("steady", 1.0, rate=1.0),),
    ),
    Scenario(
        "sweep",
        "The rate rises in steps to four times --rate; the knee is the last step that holds.",
        tuple(Phase(f"x{rate:g}", 1 / len(_SWEEP), rate=rate) for rate in _SWEEP),
        duration_seconds=240.0,
    ),
    Scenario(
        "throughput",
        "16 streams at a time, each followed by the next: how much comes out when all is taken.",
        (Phase("full", 1.0, streams=16),),
    ),
    Scenario(
        "throughput-base",
        "As throughput, the base model alone: the case that other clients can ask for as well.",
        (Phase("full", 1.0, streams=16),),
        base_share=1.0,
    ),
    Scenario(
        "spike",
        "Ten times the rate for a sixth of the time: who is turned away is told so properly, and "
        "afterwards all is as before.",
        (
            Phase("before", 1 / 3, rate=1.0),
            Phase("spike", 1 / 6, rate=10.0),
            Phase("after", 1 / 2, rate=1.0),
        ),
        duration_seconds=90.0,
    ),
    Scenario(
        "noisy-neighbour",
        "One tenant floods, within a limit of its own on concurrent requests; the others must not "
        "notice.",
        (
            Phase("quiet", 0.5, rate=1.0),
            Phase("flooded", 0.5, rate=1.0, flood=10.0),
        ),
        flooder_limits={"max_concurrent": 2},
    ),
    Scenario(
        "cold-adapters",
        "More adapters than the server holds: each is asked cold and then warm, one request at a "
        "time; then all at once.",
        (
            Phase("pairs", 0.5, streams=1, asking="cold pairs"),
            Phase("pressure", 0.5, rate=1.0),
        ),
        adapters=6,
        skew=0.0,
        base_share=0.0,
        server={"ENGINE_MAX_LORAS": "4", "ENGINE_MAX_CPU_LORAS": "4"},
    ),
    Scenario(
        "swap-under-load",
        "Traffic goes on while one adapter after another is moved to its other version and back.",
        (Phase("swapping", 1.0, rate=1.0),),
        versions=2,
        adapters=2,
        base_share=0.0,
        swap_every_seconds=5.0,
    ),
    Scenario(
        "disconnect-storm",
        "Most clients leave: before the first token, in the middle, while queued. Afterwards "
        "nothing may still run for them.",
        (
            Phase("before", 0.25, rate=1.0),
            Phase("storm", 0.5, rate=3.0, leaving=0.8),
            Phase("after", 0.25, rate=1.0),
        ),
    ),
    Scenario(
        "slow-reader",
        "A third of the clients reads its answer drop by drop and gives up in the end; the others "
        "must not notice, and memory stays bounded.",
        (
            Phase("before", 0.4, rate=1.0),
            Phase("slow", 0.6, rate=1.5, lingering=1 / 3),
        ),
    ),
    Scenario(
        "drain",
        "The server gets SIGTERM under traffic: what runs ends well, what comes is turned away.",
        (
            Phase("before", 0.5, rate=1.0),
            Phase("stopping", 0.5, rate=1.0),
        ),
        duration_seconds=30.0,
        stops_server=True,
    ),
    Scenario(
        "merged",
        "The same adapters merged into the base model and unmerged, in turn, at full load.",
        (Phase("full", 1.0, streams=8, asking="merged pairs"),),
        tenants=1,
        adapters=1,
        base_share=0.0,
    ),
    Scenario(
        "soak",
        "Traffic and a swap every half a minute, for long: memory and times must not creep.",
        (Phase("soak", 1.0, rate=1.0),),
        duration_seconds=3600.0,
        versions=2,
        swap_every_seconds=30.0,
    ),
    Scenario(
        "calibrate",
        "16 streams of a server with a known pace. Part of every run, before it.",
        # Connections are made, and both processes' first steps are slow, before it counts.
        (Phase("warm-up", 0.3, streams=16), Phase("paced", 0.7, streams=16)),
        duration_seconds=7.0,
        tenants=1,
        adapters=0,
        base_share=1.0,
    ),
)
SCENARIOS: Mapping[str, Scenario] = MappingProxyType({each.name: each for each in _ALL})
