"""The run under way in Locust's process, which makes users by itself and passes them nothing."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loadtests.measures import Objectives
from loadtests.plans import Mix, Plan
from loadtests.records import End, Header, PhaseStart, Recorder
from loadtests.scenarios import Scenario
from loadtests.target import Target

# After the last answer: long enough for another look at the server, and for one that stays busy.
_WATCHED_SECONDS = 2.0
_MOST_WATCHED_SECONDS = 20.0
STOP = "stop"


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made from; the same from the command line and from Locust's page."""

    scenario: Scenario
    target: Target
    mix: Mix
    rate: float
    duration_seconds: float
    seed: int
    request_timeout_seconds: float
    objectives: Objectives
    environment: dict[str, str]


class CurrentRun:
    """A plan, the clock that it runs by, and where what happens is written down."""

    def __init__(self, options: Options, path: Path) -> None:
        self.options = options
        self.path = path
        self.plan = Plan(
            options.scenario,
            options.target,
            options.mix,
            rate=options.rate,
            duration_seconds=options.duration_seconds,
            seed=options.seed,
        )
        self.recorder = Recorder(path)
        self.recorder.write(self._header())
        for timed in self.plan.phases:
            rate = timed.rate + timed.flood
            name, streams = timed.phase.name, timed.phase.streams
            self.recorder.write(PhaseStart(name, timed.starts, timed.seconds, rate, streams))
        self._waiting_for: set[str] = set(options.mix.protocols)
        if options.scenario.stops_server:
            self._waiting_for.add(STOP)
        self._over_since: float | None = None
        self.server_is_busy = False
        self.origin = time.perf_counter()

    @property
    def now(self) -> float:
        return time.perf_counter() - self.origin

    @property
    def is_over(self) -> bool:
        """All answers are there, and the server has been watched until it was idle."""
        if self._over_since is None:
            return False
        since = self.now - self._over_since
        return since > (_MOST_WATCHED_SECONDS if self.server_is_busy else _WATCHED_SECONDS)

    def finish(self, part: str) -> None:
        """Called by the user of a protocol after its last answer, and when the server is gone."""
        self._waiting_for.discard(part)
        if not self._waiting_for:
            self._over_since = self.now

    def close(self) -> None:
        if self._over_since is not None:
            self.recorder.write(End(self.now))
        self.recorder.close()

    def _header(self) -> Header:
        options = self.options
        return Header(
            scenario=options.scenario.name,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            rate=options.rate,
            duration_seconds=options.duration_seconds,
            seed=options.seed,
            protocols=options.mix.protocols,
            mix=options.mix.named(),
            adapters=tuple(
                f"{tenant.name}/{adapter.name}"
                for tenant in options.target.tenants
                for adapter in tenant.adapters
            ),
            objectives=dict(options.objectives),
            environment=options.environment,
            settings=options.target.settings,
        )
