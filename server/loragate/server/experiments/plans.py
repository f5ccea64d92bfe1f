"""What was declared of a rollout or an experiment before its first request, and its form in the
registry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from loragate.adapters.names import CHAMPION
from loragate.adapters.registry.trial_records import Trial
from loragate.server.errors import InvalidRequest, UnreadablePlan
from loragate.server.experiments.assignment import Split
from loragate.server.experiments.gates import Gate, parse_gate
from loragate.server.experiments.plan_bounds import (
    MOST_ARMS,
    check_alpha,
    check_count,
    check_gates,
    check_seconds,
    check_shadow,
    check_values,
)
from loragate.server.experiments.rollout_plan import RolloutPlan, RolloutState
from loragate.server.experiments.specs import FEW_VALUES, FEW_VALUES_SECONDS
from loragate.server.experiments.tally import UnitRule
from loragate.server.experiments.verdict import Question

CHALLENGER: Final = "challenger"
FEW_REQUESTS_COUNT: Final = UnitRule(FEW_VALUES, FEW_VALUES_SECONDS)
FIRST_REQUEST_COUNTS: Final = UnitRule()
"""A rollout has to fail at once, so it waits for no second value of a unit."""


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """Arms with their shares of the units, one of them called `champion`; what any other arm has to
    show to replace it. One that `is_automatic` ends by its verdict. Raises InvalidRequest.
    """

    shares: tuple[tuple[str, float], ...]
    gates: tuple[Gate, ...]
    alpha: float = 0.05
    rule: UnitRule = FEW_REQUESTS_COUNT
    shadow: float = 0.0
    is_automatic: bool = False

    def __post_init__(self) -> None:
        check_shadow(self.shadow)
        check_count(self.shares, MOST_ARMS, "arms", "arms")
        check_gates(self.gates)
        names = Split.of(self.shares).arms
        if CHAMPION not in names or len(names) < 2:
            raise InvalidRequest(
                "An experiment compares other arms with one called 'champion'; name one so."
            )
        if not self.gates:
            raise InvalidRequest(
                "An experiment needs a question, as in --gate 'rating>=champion-0.1'.", param="gate"
            )
        check_alpha(self.alpha)
        check_values(self.rule.values)
        check_seconds(self.rule.window_seconds, "A unit's window", "window_seconds")

    @property
    def challengers(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shares if name != CHAMPION)

    @property
    def question(self) -> Question:
        # Several challengers have several chances to be mistaken for better.
        return Question(self.gates, self.alpha / len(self.challengers))


class _Rollout(msgspec.Struct, tag="rollout", frozen=True, forbid_unknown_fields=True):
    steps: tuple[float, ...]
    every_seconds: float
    gates: tuple[str, ...]
    alpha: float
    shadow: float = 0.0


class _Experiment(msgspec.Struct, tag="experiment", frozen=True, forbid_unknown_fields=True):
    shares: tuple[tuple[str, float], ...]
    gates: tuple[str, ...]
    alpha: float
    values: int
    window_seconds: float
    shadow: float = 0.0
    is_automatic: bool = False


def to_json(plan: RolloutPlan | ExperimentPlan) -> str:
    gates = tuple(str(gate) for gate in plan.gates)
    match plan:
        case RolloutPlan():
            kept = _Rollout(plan.steps, plan.every_seconds, gates, plan.alpha, plan.shadow)
        case ExperimentPlan():
            rule = plan.rule
            kept = _Experiment(
                plan.shares,
                gates,
                plan.alpha,
                rule.values,
                rule.window_seconds,
                plan.shadow,
                plan.is_automatic,
            )
    return msgspec.json.encode(kept).decode()


def from_json(text: str) -> RolloutPlan | ExperimentPlan:
    """Raises UnreadablePlan for what this version would not write."""
    try:
        return _made(msgspec.json.decode(text, type=_Rollout | _Experiment))
    except (msgspec.MsgspecError, InvalidRequest) as error:
        raise UnreadablePlan(f"what was kept of its plan cannot be followed: {error}") from error


def plan_of(trial: Trial) -> RolloutPlan | ExperimentPlan:
    """The plan that the trial follows, which fits its arms and where it stands.

    Raises UnreadablePlan where the registry holds what this version would not have written: what
    else reads the trial may then index and divide by what is here.
    """
    plan, status = from_json(trial.plan), trial.status
    arms, steps = {arm.name for arm in trial.arms}, 1
    match plan:
        case RolloutPlan():
            kind, named, steps = "rollout", {CHALLENGER, CHAMPION}, len(plan.steps)
        case ExperimentPlan():
            kind, named = "experiment", {name for name, _ in plan.shares}
    for holds, what in (
        (kind == trial.kind, f"its plan is that of {kind}s"),
        (named == arms, f"its plan is for the arms {', '.join(sorted(named))}"),
        (0 <= status.step < steps, f"there is no step {status.step}"),
        (status.state in tuple(RolloutState), f"there is no state {status.state}"),
        (math.isfinite(status.watched_seconds), "the time that it was watched for is none"),
    ):
        if not holds:
            raise UnreadablePlan(f"what was kept of it cannot be followed: {what}")
    return plan


def _made(kept: _Rollout | _Experiment) -> RolloutPlan | ExperimentPlan:
    if isinstance(kept, _Rollout):
        gates = _gates(kept.gates)
        return RolloutPlan(kept.steps, kept.every_seconds, gates, kept.alpha, kept.shadow)
    return ExperimentPlan(
        kept.shares,
        _gates(kept.gates),
        kept.alpha,
        UnitRule(kept.values, kept.window_seconds),
        kept.shadow,
        kept.is_automatic,
    )


def _gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    check_gates(texts)
    return tuple(parse_gate(text) for text in texts)
