"""Everything that is known of a challenger, in one answer: it passes, fails, or it is too early.

How the error is kept: with probability `alpha` at most a challenger passes that should not, and
with `alpha` at most one fails that should not, however often one looks. To pass, all gates must
hold, so each may be tested at alpha (R. L. Berger, "Multiparameter hypothesis testing and
acceptance sampling", Technometrics 24 (1982)); the same goes for the steps of a rollout, all of
which must be passed. To fail, one gate of one step is enough, so each is tested at its part of
alpha.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from loragate.server.experiments.gates import Gate, GateAnswer, GateState, answer
from loragate.server.experiments.sample_ratio import ALARM, SampleRatio, sample_ratio
from loragate.server.experiments.tally import ArmTally

MOST_FALLBACKS = 0.05
"""A larger part of an arm's requests answered by another arm leaves too little to judge it by."""


class Decision(StrEnum):
    """What may be concluded."""

    PASS = "PASS"
    """Every gate holds."""
    FAIL = "FAIL"
    """A gate fails."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Too early to say. It does not mean that the arms are alike."""
    BLOCKED = "BLOCKED"
    """The figures cannot be trusted, whatever they say."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is one sentence; `missing` says, gate by gate, what an open verdict waits for."""

    decision: Decision
    reason: str
    answers: tuple[GateAnswer, ...] = ()
    missing: tuple[str, ...] = ()
    ratio: SampleRatio = field(default_factory=lambda: SampleRatio(None))


@dataclass(frozen=True, slots=True)
class Question:
    """What was declared before the first request. `chances_to_fail`: how many verdicts may be asked
    for, such as the steps of a rollout or the challengers of an experiment.
    """

    gates: tuple[Gate, ...]
    alpha: float = 0.05
    chances_to_fail: int = 1


def judge(
    question: Question,
    challenger: ArmTally,
    champion: ArmTally | None,
    others: Sequence[ArmTally] = (),
) -> Verdict:
    """`champion` is None where it has no share any more. `others` are the experiment's other arms:
    they count for the sample ratio.
    """
    arms = [challenger, *([champion] if champion is not None else []), *others]
    ratio = sample_ratio(arms)
    if blocked := _blocked(ratio, arms):
        return Verdict(Decision.BLOCKED, blocked, ratio=ratio)
    gates = question.gates
    fail_alpha = question.alpha / max(1, len(gates) * question.chances_to_fail)
    answers = tuple(
        answer(gate, challenger, champion, question.alpha, fail_alpha) for gate in gates
    )
    failed = [found for found in answers if found.state is GateState.FAILS]
    if failed:
        reason = "; ".join(_failure(found) for found in failed)
        return Verdict(Decision.FAIL, reason, answers, ratio=ratio)
    missing = [found.missing for found in answers if found.state is GateState.OPEN]
    if missing:
        missing += _too_few_units(challenger, champion)
        return Verdict(Decision.INCONCLUSIVE, missing[0], answers, tuple(missing), ratio)
    held = ", ".join(str(gate) for gate in gates)
    reason = f"every gate holds: {held}" if gates else "there is no gate"
    return Verdict(Decision.PASS, reason, answers, ratio=ratio)


def decide(verdicts: Mapping[str, Verdict]) -> tuple[str | None, str] | None:
    """The arm to promote, by the challengers' verdicts, and why; no arm where all have failed, and
    nothing where it is too early.
    """
    for arm, verdict in verdicts.items():
        if verdict.decision is Decision.PASS:
            return arm, f"{arm}: {verdict.reason}"
    if all(verdict.decision is Decision.FAIL for verdict in verdicts.values()):
        return None, "; ".join(f"{arm}: {found.reason}" for arm, found in verdicts.items())
    return None


def _blocked(ratio: SampleRatio, arms: Sequence[ArmTally]) -> str:
    if ratio.is_mismatch:
        counts = ", ".join(f"{arm.name} {arm.units}" for arm in arms)
        return (
            f"the arms did not fill as their shares say ({counts} units; p = {ratio.p_value:.2g}, "
            f"below {ALARM}): something loses or moves units, find it before comparing the rest"
        )
    for arm in arms:
        if arm.requests and arm.fallbacks / arm.requests > MOST_FALLBACKS:
            return (
                f"{arm.fallbacks} of {arm.requests} requests of {arm.name} were answered by "
                "another arm; the rest is no fair picture of it"
            )
    return ""


def _failure(found: GateAnswer) -> str:
    gate, seen = found.gate, found.interval
    side, limit = ("at least", seen.lower) if gate.is_upper else ("at most", seen.upper)
    return (
        f"{gate} fails: it is {side} {gate.shown(limit)} "
        f"({gate.shown(seen.estimate)} in {seen.units} units)"
    )


def _too_few_units(challenger: ArmTally, champion: ArmTally | None) -> list[str]:
    arms = [challenger] if champion is None else [challenger, champion]
    keys = sum(arm.unit_kinds.get("key", 0) for arm in arms)
    units = sum(arm.units for arm in arms)
    if keys * 2 <= units:
        return []
    return [
        f"{keys} of {units} units are API keys, since requests name neither a user nor a "
        "conversation; name them, so that there are more units"
    ]
