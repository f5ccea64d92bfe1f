"""What a run writes down, one JSON object a line: nothing in a report comes from anywhere else.

All times are seconds since the run's start, on one monotonic clock.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from loadtests.target import Protocol

# ok: the whole answer. refused: turned away as the API promises, with a hint when to come back or
# the word that it is no use. left: this client went away, as planned. unreachable: nobody listens.
# cut: the run was over first. failed: everything else.
Outcome = Literal["ok", "refused", "left", "unreachable", "cut", "failed"]


class Header(msgspec.Struct, tag="run", frozen=True):
    """How the run was made: enough to make it again."""

    scenario: str
    started_at: str
    rate: float
    duration_seconds: float
    seed: int
    protocols: tuple[Protocol, ...]
    mix: dict[str, str]
    adapters: tuple[str, ...]
    objectives: dict[str, float]
    environment: dict[str, str]
    settings: dict[str, str]


class Sample(msgspec.Struct, tag="sample"):
    """One request. `frames` are the arrivals of tokens, `tokens` how many came with each.

    `intended` is when it had to be sent; `sent` is later where this client was late.
    """

    index: int
    phase: str
    protocol: Protocol
    tenant: str
    adapter: str
    label: str
    client: str
    intended: float
    sent: float
    ended: float
    outcome: Outcome
    status: str = ""
    code: str = ""
    served_by: str = ""
    prompt_tokens: int = 0
    retry_after_seconds: float | None = None
    frames: list[float] = []
    tokens: list[int] = []

    @property
    def ttft_seconds(self) -> float | None:
        return self.frames[0] - self.intended if self.frames else None

    @property
    def e2e_seconds(self) -> float:
        return self.ended - self.intended

    @property
    def output_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first frame's."""
        after_first = self.output_tokens - self.tokens[0] if self.tokens else 0
        return (self.frames[-1] - self.frames[0]) / after_first if after_first else None

    @property
    def gaps_seconds(self) -> list[float]:
        return [late - early for early, late in pairwise(self.frames)]


class PhaseStart(msgspec.Struct, tag="phase", frozen=True):
    name: str
    at: float
    seconds: float
    rate: float  # requests a second, of all tenants; 0 where streams follow each other
    streams: int = 0


class Swap(msgspec.Struct, tag="swap", frozen=True):
    """An alias was moved: asked for, and seen to serve (None: not within the time it was given)."""

    adapter: str
    version: str
    asked: float
    served: float | None


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """The server was told to stop, and what its probes said from then on, by time."""

    at: float
    exited: float | None
    ready: list[tuple[float, int]]
    live: list[tuple[float, int]]


class ServerTick(msgspec.Struct, tag="server", frozen=True):
    """What `/metrics` and the process table say of the server."""

    at: float
    running: float
    queued: float
    adapter_loads: float
    rss_bytes: int | None


class ClientTick(msgspec.Struct, tag="client", frozen=True):
    """This client's own load: how late its loop woke up, and its share of one core."""

    at: float
    lags_seconds: list[float]
    cpu_share: float


class End(msgspec.Struct, tag="end", frozen=True):
    """The last line: the run came to its end, and was not broken off."""

    at: float


Record = Header | Sample | PhaseStart | Swap | Stop | ServerTick | ClientTick | End


@dataclass(slots=True)
class Run:
    """A run, read back."""

    header: Header
    samples: list[Sample] = field(default_factory=list)
    phases: list[PhaseStart] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    server: list[ServerTick] = field(default_factory=list)
    client: list[ClientTick] = field(default_factory=list)
    is_complete: bool = False


class Recorder:
    """Writes records as they come; whoever makes it closes it."""

    def __init__(self, path: Path) -> None:
        self._encoder = msgspec.json.Encoder()
        self._file = path.open("wb")

    def write(self, record: Record) -> None:
        self._file.write(self._encoder.encode(record) + b"\n")

    def close(self) -> None:
        self._file.close()


def read_run(path: Path) -> Run:
    """Raises ValueError for a file that is no run."""
    with path.open("rb") as lines:
        return gather(msgspec.json.decode(line, type=Record) for line in lines)


def gather(records: Iterable[Record]) -> Run:
    """Puts records into a run, samples in the order they were to be sent."""
    found: Iterator[Record] = iter(records)
    header = next(found, None)
    if not isinstance(header, Header):
        raise ValueError("The file does not begin with a run's header.")
    run = Run(header)
    for record in found:
        match record:
            case Sample():
                run.samples.append(record)
            case PhaseStart():
                run.phases.append(record)
            case Swap():
                run.swaps.append(record)
            case Stop():
                run.stops.append(record)
            case ServerTick():
                run.server.append(record)
            case ClientTick():
                run.client.append(record)
            case End():
                run.is_complete = True
            case Header():
                raise ValueError("The file holds two runs.")
    run.samples.sort(key=lambda sample: sample.intended)
    return run
