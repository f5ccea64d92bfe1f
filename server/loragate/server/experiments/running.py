"""A rollout or an experiment under way, in memory: it gives out arms, counts, and is looked at.

The request path calls `assign`, `expose` and `observe`, which take microseconds; whoever looks
calls `verdicts`, which may take some milliseconds. It belongs to one event loop.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from loragate.adapters.names import CHAMPION
from loragate.adapters.registry.step_figures import (
    CountingRule,
    Event,
    FirstExposure,
    StepFigures,
    UnitFeedback,
    UnitOutcome,
)
from loragate.adapters.registry.trial_records import (
    Arm,
    ExposureRow,
    FeedbackRow,
    OutcomeRow,
    Trial,
)
from loragate.server.experiments.assignment import Split, Unit, UnitKind, bucket, is_in
from loragate.server.experiments.metrics import COMMENT, Outcome
from loragate.server.experiments.plans import (
    CHALLENGER,
    FIRST_REQUEST_COUNTS,
    ExperimentPlan,
)
from loragate.server.experiments.rollout_plan import RolloutPlan
from loragate.server.experiments.tally import ArmTally, Tally
from loragate.server.experiments.verdict import Verdict, judge

MOST_UNITS: Final = 500_000
"""Of all arms of a step together; a unit takes 0.6 KiB, with five values of each metric 1.2.

Those that come later do not count. As what is said holds at every moment, it holds at the one where
counting ends; and as it ends for all arms at once, it moves no arm's part of the units.
"""
_KINDS: Final[Mapping[str, UnitKind]] = {"user": "user", "conversation": "conversation"}
_EVENTS_A_PIECE: Final = 100  # some hundred microseconds of work


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of a request, and what of its unit is kept."""

    arm: Arm
    unit: str
    unit_kind: UnitKind


class RunningTrial:
    """Counts one step of a trial, from its beginning or from what `recount` finds on; for the next
    step make a new one. `trial` may be replaced by the same one in another state.
    """

    def __init__(
        self,
        trial: Trial,
        plan: RolloutPlan | ExperimentPlan,
        most_units: int = MOST_UNITS,
    ) -> None:
        self.trial = trial
        self.plan = plan
        self._shares = _shares(trial, plan)
        self._split = None if isinstance(plan, RolloutPlan) else Split.of(plan.shares)
        rule = FIRST_REQUEST_COUNTS if isinstance(plan, RolloutPlan) else plan.rule
        self._arms = {arm.name: arm for arm in trial.arms}
        self._names = {arm.id: arm.name for arm in trial.arms}
        self._tallies = {name: Tally(rule) for name in self._arms}
        # By exposure, arm and unit of what may still come; the oldest first.
        self._exposed: OrderedDict[str, tuple[str, str, float]] = OrderedDict()
        self._rule = rule
        self.most_units = most_units

    @property
    def counting_rule(self) -> CountingRule:
        """What of the requests so far is needed to count them anew."""
        rule = self._rule
        return CountingRule(rule.values, rule.window_seconds, self.most_units)

    @property
    def is_full(self) -> bool:
        """Whether there are so many units that those which come now do not count."""
        return sum(tally.units for tally in self._tallies.values()) >= self.most_units

    def assign(self, unit: Unit) -> Assignment:
        place = bucket(self.trial.salt, unit)
        if self._split is not None:
            name = self._split.arm(place)
        else:
            name = CHALLENGER if is_in(place, self._shares[CHALLENGER]) else CHAMPION
        return Assignment(self._arms[name], unit.digest(f"{self.trial.salt}:kept"), unit.kind)

    def expose(self, given: Assignment, tenant: str, request_id: str, at: datetime) -> ExposureRow:
        """At admission, before it is known how the request ends. The row is to be kept."""
        row = ExposureRow(
            os.urandom(12).hex(),
            given.arm.id,
            self.trial.status.step,
            tenant,
            request_id,
            given.unit,
            given.unit_kind,
            at,
        )
        self._count_exposure(row, given.unit_kind)
        return row

    def observe(
        self, exposure: ExposureRow, outcome: Outcome, at: datetime, *, is_fallback: bool = False
    ) -> OutcomeRow:
        """However the request ended. The row is to be kept."""
        row = OutcomeRow(
            exposure.id,
            at,
            is_fallback,
            outcome.failed,
            outcome.duration_seconds,
            outcome.completion_tokens,
            outcome.ttft_seconds,
            outcome.itl_seconds,
        )
        self._count_outcome(exposure, row)
        return row

    def record(self, feedback: FeedbackRow) -> None:
        """Feedback that the registry has kept now; that of another trial or step, of a request that
        a fallback answered, or of one that is long past, is passed over.
        """
        exposed = self._exposed.get(feedback.exposure_id or "")
        if exposed is None or feedback.metric == COMMENT or feedback.value is None:
            return
        arm, unit, _ = exposed
        at = feedback.at.timestamp()
        self._tallies[arm].observe(unit, feedback.metric, feedback.value, at)

    def tallies(self, now: datetime) -> Mapping[str, ArmTally]:
        """By the arm's name, in the order of the arms."""
        return {
            name: tally.at(name, self._shares[name], now.timestamp())
            for name, tally in self._tallies.items()
        }

    def verdicts(self, now: datetime) -> Mapping[str, Verdict]:
        """By the challenger's name."""
        return self.judged(self.tallies(now))

    def judged(self, tallies: Mapping[str, ArmTally]) -> Mapping[str, Verdict]:
        """Of these figures, by the challenger's name; any thread may ask."""
        tallies = {name: tally for name, tally in tallies.items() if tally.share > 0}
        champion = tallies.pop(CHAMPION, None)
        return {
            name: judge(
                self.plan.question,
                tally,
                champion,
                [other for other in tallies.values() if other is not tally],
            )
            for name, tally in tallies.items()
        }

    def recount(self, figures: StepFigures) -> int:
        """Counts what was kept before, such as by a server that has ended since; returns how many
        requests there were. Blocks, for long where there were many; to be done first of all.
        """
        requests, fallbacks = figures.requests(), figures.fallbacks()
        for arm_id, name in self._names.items():
            self._tallies[name].count_all(requests.get(arm_id, 0), fallbacks.get(arm_id, 0))
        for number, event in enumerate(figures.events()):
            self._count_event(event)
            if number % _EVENTS_A_PIECE == 0:
                time.sleep(0)  # for the event loop, which waits for Python's lock meanwhile
        return sum(requests.values())

    def remember(self, figures: StepFigures) -> None:
        """After `recount`, where counting goes on: of which requests feedback may still count."""
        for recent in figures.recent():
            at = recent.at.timestamp()
            self._exposed[recent.id] = self._names[recent.arm_id], recent.unit, at

    def _count_event(self, event: Event) -> None:
        tally, at = self._tallies[self._names[event.arm_id]], event.at.timestamp()
        match event:
            case FirstExposure():
                kind: UnitKind = _KINDS.get(event.unit_kind, "key")
                tally.begin(event.unit, kind, at, takes_new=not self.is_full)
            case UnitOutcome():
                outcome = Outcome(
                    event.failed,
                    event.duration_seconds,
                    event.completion_tokens,
                    event.ttft_seconds,
                    event.itl_seconds,
                )
                for metric, value in outcome.observations():
                    tally.observe(event.unit, metric, value, at)
            case UnitFeedback():
                tally.observe(event.unit, event.metric, event.value, at)

    def _count_exposure(self, row: ExposureRow, kind: UnitKind) -> None:
        arm = self._names[row.arm_id]
        at = row.at.timestamp()
        self._forget_before(at - self._rule.window_seconds)
        self._exposed[row.id] = arm, row.unit, at
        self._tallies[arm].expose(row.unit, kind, at, takes_new=not self.is_full)

    def _count_outcome(self, exposure: ExposureRow, row: OutcomeRow) -> None:
        if row.is_fallback:
            self._tallies[self._names[exposure.arm_id]].fall_back()
            self._exposed.pop(row.exposure_id, None)
            return
        exposed = self._exposed.get(row.exposure_id)
        if exposed is None:
            return
        arm, unit, _ = exposed
        outcome = Outcome(
            row.failed,
            row.duration_seconds,
            row.completion_tokens,
            row.ttft_seconds,
            row.itl_seconds,
        )
        for metric, value in outcome.observations():
            self._tallies[arm].observe(unit, metric, value, row.at.timestamp())

    def _forget_before(self, at: float) -> None:
        # Later values of a unit do not count: its window began at its first request.
        while self._exposed:
            oldest = next(iter(self._exposed))
            if self._exposed[oldest][2] >= at:
                return
            del self._exposed[oldest]


def _shares(trial: Trial, plan: RolloutPlan | ExperimentPlan) -> dict[str, float]:
    if isinstance(plan, ExperimentPlan):
        return dict(plan.shares)
    share = plan.steps[trial.status.step]
    return {CHALLENGER: share, CHAMPION: 1 - share}
