"""The steps of a rollout as a state machine: where it stands, and what one more look makes of it.

    RUNNING ─▶ INCONCLUSIVE      a step's time is over and its gates are open: its share is held
       │  ◀─       │             until they close, and then it goes on or back by itself
       ├───────────┼──▶ PAUSED   by a person: it goes on only when told to
       ▼           ▼
    PASSED, ROLLED_BACK, ABORTED

Time is what was spent *watching* at the present step, added up look by look and kept with the
state: it comes from the monotonic clock of whoever looks. So a wall clock that is set forward or
back moves nothing, and neither does the time for which a server was down; a restart goes on where
it stood.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from loragate.adapters.registry.trial_records import TrialStatus
from loragate.server.errors import InvalidRequest, RolloutMoveRefused, UnreadablePlan
from loragate.server.experiments.gates import Gate
from loragate.server.experiments.plan_bounds import (
    MOST_STEPS,
    SMALLEST_SHARE,
    check_alpha,
    check_count,
    check_gates,
    check_seconds,
    check_shadow,
)
from loragate.server.experiments.verdict import Decision, Question, Verdict


class RolloutState(StrEnum):
    """Where a rollout stands."""

    RUNNING = "RUNNING"
    INCONCLUSIVE = "INCONCLUSIVE"
    PAUSED = "PAUSED"
    PASSED = "PASSED"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"

    @property
    def is_over(self) -> bool:
        return self in (RolloutState.PASSED, RolloutState.ROLLED_BACK, RolloutState.ABORTED)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """`steps` are shares of the challenger, growing, the last at most 1; each is held for
    `every_seconds` at least, and until its gates hold. `shadow` of the requests are also answered
    by the other arm. Raises InvalidRequest.
    """

    steps: tuple[float, ...]
    every_seconds: float
    gates: tuple[Gate, ...]
    alpha: float = 0.05
    shadow: float = 0.0

    def __post_init__(self) -> None:
        check_shadow(self.shadow)
        check_count(self.steps, MOST_STEPS, "steps", "steps")
        check_gates(self.gates)
        if not self.steps or not all(map(_is_step, self.steps)):
            raise InvalidRequest(
                f"Steps are percentages over 0, to 100, as in 1,10,50,100; at least "
                f"{SMALLEST_SHARE:.4%}, and as far from 100 unless it is that.",
                param="steps",
            )
        if any(later <= step for step, later in zip(self.steps, self.steps[1:], strict=False)):
            raise InvalidRequest(
                "Each step must be larger than the one before, as in 1,10,50,100.", param="steps"
            )
        check_seconds(self.every_seconds, "A step", "every_seconds")
        check_alpha(self.alpha)

    @property
    def question(self) -> Question:
        return Question(self.gates, self.alpha, len(self.steps))


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """Where a rollout stands: at step `step`, watched there for `watched_seconds`. `reason` says
    why it is in its state.
    """

    state: RolloutState = RolloutState.RUNNING
    step: int = 0
    watched_seconds: float = 0.0
    reason: str = "it began"

    def share(self, plan: RolloutPlan) -> float:
        """Of the units, whose requests the challenger answers."""
        match self.state:
            case RolloutState.PASSED:
                return 1.0
            case RolloutState.ROLLED_BACK | RolloutState.ABORTED:
                return 0.0
            case _:
                return plan.steps[self.step]


def _is_step(share: float) -> bool:
    """What is left for the champion is a share too, or nothing."""
    return SMALLEST_SHARE <= share <= 1 - SMALLEST_SHARE or share == 1


def progress_of(status: TrialStatus) -> RolloutProgress:
    """From its form in the registry. Raises UnreadablePlan for a state that is none."""
    try:
        state = RolloutState(status.state)
    except ValueError:
        raise UnreadablePlan(f"there is no state {status.state}") from None
    return RolloutProgress(state, status.step, status.watched_seconds, status.reason)


def status_of(progress: RolloutProgress) -> TrialStatus:
    """Its form in the registry."""
    return TrialStatus(
        str(progress.state), progress.step, progress.watched_seconds, progress.reason
    )


def parse_steps(texts: Sequence[str]) -> tuple[float, ...]:
    """From percentages, as `1`, `10`, `50`. Raises InvalidRequest."""
    try:
        return tuple(float(text) / 100 for text in texts)
    except ValueError as error:
        raise InvalidRequest(
            f"Steps are percentages, as in 1,10,50,100 ({error}).", param="steps"
        ) from None


def look(
    plan: RolloutPlan, progress: RolloutProgress, seconds: float, verdict: Verdict
) -> RolloutProgress:
    """After `seconds` more of watching, in which the present step came to this verdict.

    A failure ends it at once, paused or not. Raises ValueError for negative seconds.
    """
    if seconds < 0:
        raise ValueError("time that was spent watching cannot be negative; use a monotonic clock")
    if progress.state.is_over:
        return progress
    if verdict.decision is Decision.FAIL:
        return replace(progress, state=RolloutState.ROLLED_BACK, reason=verdict.reason)
    if progress.state is RolloutState.PAUSED:
        return progress
    watched = replace(progress, watched_seconds=progress.watched_seconds + seconds)
    if watched.watched_seconds < plan.every_seconds:
        return watched
    if verdict.decision is Decision.PASS:
        return _passed(plan, watched, verdict)
    missing = "; ".join(verdict.missing) or verdict.reason
    return replace(watched, state=RolloutState.INCONCLUSIVE, reason=missing)


def _passed(plan: RolloutPlan, progress: RolloutProgress, verdict: Verdict) -> RolloutProgress:
    step = progress.step + 1
    if step == len(plan.steps):
        return replace(progress, state=RolloutState.PASSED, reason=verdict.reason)
    reason = f"at {plan.steps[progress.step]:.3g} of the units {verdict.reason}"
    return RolloutProgress(RolloutState.RUNNING, step, 0.0, reason)


def fell_back(progress: RolloutProgress, why: str) -> RolloutProgress:
    """The challenger could not answer and the champion did: paused, for a person to look at."""
    if progress.state.is_over:
        return progress
    return replace(progress, state=RolloutState.PAUSED, reason=why)


def pause(progress: RolloutProgress, why: str) -> RolloutProgress:
    """Holds the share. Raises RolloutMoveRefused if it is over."""
    return replace(_going_on(progress, "paused"), state=RolloutState.PAUSED, reason=why)


def resume(progress: RolloutProgress, why: str) -> RolloutProgress:
    """Goes on at the same step, whose time goes on too. Raises RolloutMoveRefused unless it is
    paused.
    """
    if progress.state is not RolloutState.PAUSED:
        raise RolloutMoveRefused(
            f"It is {progress.state} and cannot be resumed; only what is paused can."
        )
    return replace(progress, state=RolloutState.RUNNING, reason=why)


def abort(progress: RolloutProgress, why: str) -> RolloutProgress:
    """Everybody gets the champion again. Raises RolloutMoveRefused if it is over."""
    return replace(_going_on(progress, "aborted"), state=RolloutState.ABORTED, reason=why)


def win(progress: RolloutProgress, why: str) -> RolloutProgress:
    """The challenger is to be the champion. Raises RolloutMoveRefused if it is over."""
    return replace(_going_on(progress, "promoted"), state=RolloutState.PASSED, reason=why)


def roll_back(progress: RolloutProgress, why: str) -> RolloutProgress:
    """The champion stays. Raises RolloutMoveRefused if it is over."""
    return replace(_going_on(progress, "rolled back"), state=RolloutState.ROLLED_BACK, reason=why)


def _going_on(progress: RolloutProgress, wanted: str) -> RolloutProgress:
    if progress.state.is_over:
        raise RolloutMoveRefused(
            f"It is {progress.state} and cannot be {wanted}; start another one."
        )
    return progress
