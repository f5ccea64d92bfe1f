"""Where requests meet rollouts and experiments: an arm for each, and what becomes of it.

All of it is in memory and takes microseconds; rows go to a log that writes in batches. It belongs
to one event loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from loragate.adapters.names import CHAMPION, AdapterVersion
from loragate.adapters.registry.clock import WallClock, wall_clock
from loragate.adapters.registry.trial_records import Arm, ExposureRow, FeedbackRow
from loragate.server.core import Route
from loragate.server.experiments.assignment import Unit, bucket, is_in
from loragate.server.experiments.metrics import Outcome
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.running import Assignment, RunningTrial


class ClosedRecord(Protocol):
    """A request's meter, once it is closed; see `usage.Record`. Times in seconds."""

    completion_tokens: int
    ttft_seconds: float | None
    duration_seconds: float
    outcome: str
    is_fault: bool

    @property
    def itl_seconds(self) -> Sequence[float]: ...


class ActiveTrial:
    """One trial under way on this server. `down` are the arms that cannot answer now, and why."""

    def __init__(self, running: RunningTrial, on_down: Callable[[], None] = lambda: None) -> None:
        """`on_down` is called when an arm is found to be down."""
        self.running = running
        self.down: dict[str, str] = {}
        self._on_down = on_down

    def mark_down(self, arm: str, why: str) -> None:
        if arm not in self.down:
            self.down[arm] = why
            self._on_down()

    @property
    def champion(self) -> AdapterVersion | None:
        return self.running.trial.arm(CHAMPION).version


@dataclass(frozen=True, slots=True)
class Shadow:
    """`arm` is to answer what `answered_by` has answered."""

    exposure: ExposureRow
    answered_by: str
    arm: Arm


class TrialAssignment:
    """One request's part in a trial, from its admission to its end."""

    def __init__(
        self,
        active: ActiveTrial,
        given: Assignment,
        tenant: str,
        log: ObservationLog,
        now: WallClock,
    ) -> None:
        self._active_trial = active
        self._running = active.running  # a later step counts for itself
        self._given = given
        self._log = log
        self._now = now
        self._exposure: ExposureRow | None = None
        self.route = Route(
            tenant,
            given.arm.version,
            given.arm.mode,
            experiment=str(active.running.trial),
            arm=given.arm.name,
            unit=given.unit_kind,
        )
        if given.arm.name in active.down:
            self._answer_by_champion()

    @property
    def is_fallback(self) -> bool:
        return bool(self.route.fallback)

    @property
    def exposure_id(self) -> str | None:
        """None before the request is admitted."""
        return None if self._exposure is None else self._exposure.id

    def admit(self, request_id: str) -> None:
        """Logs the exposure: before it is known how the request ends, or what is refused and what
        fails would be missing from the figures.
        """
        row = self._running.expose(self._given, self.route.tenant, request_id, self._now())
        self._exposure = row
        self._log.add(row)

    def fall_back(self, why: str) -> bool:
        """The arm cannot answer: from now on the champion does, for this request and those that
        come. False where the champion is the arm, or there is no other.
        """
        if self._given.arm.name == CHAMPION or self.is_fallback:
            return False
        self._active_trial.mark_down(self._given.arm.name, why)
        self._answer_by_champion()
        return True

    def end(self, record: ClosedRecord) -> None:
        """Logs how the request ended. What was refused for its own sake says nothing of the arm,
        nor does a server that stops; of a client that left, what it saw until then counts.
        """
        has_answer = record.outcome == "ok" or record.ttft_seconds is not None
        failed = record.is_fault and record.outcome != "draining"
        if self._exposure is None or not (has_answer or failed):
            return
        gaps = record.itl_seconds
        outcome = Outcome(
            failed,
            record.duration_seconds,
            record.completion_tokens,
            record.ttft_seconds,
            sum(gaps) / len(gaps) if gaps else None,
        )
        now = self._now()
        self._log.add(
            self._running.observe(self._exposure, outcome, now, is_fallback=self.is_fallback)
        )

    def shadow(self) -> Shadow | None:
        """The other arm, where this request is one of those that it is to answer too."""
        exposure, trial = self._exposure, self._running.trial
        if exposure is None or self.is_fallback:
            return None
        # Salted apart: else it were always the same users who are shadowed.
        drawn = bucket(f"{trial.salt}:shadow", Unit("key", exposure.id))
        if not is_in(drawn, self._running.plan.shadow):
            return None
        others = [
            arm
            for arm in trial.arms
            if arm.id != self._given.arm.id and arm.name not in self._active_trial.down
        ]
        if not others:
            return None
        arm = others[int(exposure.id, 16) % len(others)]
        return Shadow(exposure, self._given.arm.name, arm)

    def answer_by(self, route: Route) -> None:
        """The arm's version answers for it by another route, for this request alone."""
        self.route = route

    def _answer_by_champion(self) -> None:
        champion = self._active_trial.running.trial.arm(CHAMPION)
        self.route = replace(
            self.route, version=champion.version, mode=champion.mode, fallback=CHAMPION
        )


class TrialRouter:
    """The trials under way, by adapter."""

    def __init__(
        self,
        log: ObservationLog,
        can_serve: Callable[[AdapterVersion], bool],
        now: WallClock = wall_clock,
    ) -> None:
        """`can_serve` knows of versions that have failed."""
        self._log = log
        self._can_serve = can_serve
        self._now = now
        self._active: dict[tuple[str, str], ActiveTrial] = {}

    def active_trial(self, tenant: str, model: str) -> ActiveTrial | None:
        """The trial whose arms answer requests for `model`: an adapter's plain name."""
        return self._active.get((tenant, model.removeprefix(f"{tenant}/")))

    def assign(self, active: ActiveTrial, route: Route, unit: Unit) -> TrialAssignment | None:
        """`route` is where the request would go without a trial. None where that is no longer the
        trial's champion: somebody has promoted another version, and means it.
        """
        if active.champion is not None and active.champion != route.version:
            return None
        given = active.running.assign(unit)
        assignment = TrialAssignment(active, given, route.tenant, self._log, self._now)
        version = assignment.route.version
        if version is not None and not self._can_serve(version):
            assignment.fall_back(f"{version} cannot be served")
        return assignment

    def put(self, active: ActiveTrial) -> None:
        """In place of the adapter's trial before it, if there was one."""
        adapter = active.running.trial.adapter
        self._active[adapter.tenant, adapter.name] = active

    def drop(self, active: ActiveTrial) -> None:
        adapter = active.running.trial.adapter
        if self._active.get((adapter.tenant, adapter.name)) is active:
            del self._active[adapter.tenant, adapter.name]

    def active_trials(self) -> tuple[ActiveTrial, ...]:
        return tuple(self._active.values())

    def record(self, feedback: FeedbackRow) -> None:
        """Feedback that the registry has kept now."""
        for active in self._active.values():
            if active.running.trial.adapter.tenant == feedback.tenant:
                active.running.record(feedback)
