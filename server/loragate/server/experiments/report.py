"""A rollout or an experiment for people: what its arms did, what may be concluded, what is missing.

`TrialReport` is plain data; `to_terminal` and `to_html` show it. The page holds its plots itself
and loads nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from loragate.adapters.names import CHAMPION
from loragate.adapters.registry.trial_records import ShadowRow, Trial
from loragate.server.experiments.gates import Gate, GateAnswer, GateState, measure
from loragate.server.experiments.plans import to_json
from loragate.server.experiments.rollout_plan import RolloutPlan
from loragate.server.experiments.running import RunningTrial
from loragate.server.experiments.tally import ArmTally
from loragate.server.experiments.verdict import Decision, Verdict

_POINTS = 24
_PAIRS = 10  # of answers that a page shows side by side
_COLOURS = {
    Decision.PASS: "green",
    Decision.FAIL: "red",
    Decision.INCONCLUSIVE: "yellow",
    Decision.BLOCKED: "magenta",
}


@dataclass(frozen=True, slots=True)
class ArmLine:
    """An arm, what answers in it, and what it was given."""

    tally: ArmTally
    answers: str


@dataclass(frozen=True, slots=True)
class Curve:
    """What is compared with a gate's bound, and its limits, as units came in."""

    gate: Gate
    units: tuple[int, ...]
    estimates: tuple[float, ...]
    lowers: tuple[float, ...]
    uppers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """A challenger beside the champion. `curves` are in the order of the verdict's answers."""

    challenger: str
    verdict: Verdict
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class ShadowLine:
    """Answers of one arm beside those of another. `same` and `mean_same_tokens` are of the
    `greedy` ones alone, since the rest differ by chance.
    """

    answered_by: str
    shadowed_by: str
    pairs: int
    greedy: int
    same: int
    mean_same_tokens: float


@dataclass(frozen=True, slots=True)
class TrialReport:
    """All that is shown. `alpha` is the probability of each wrong verdict; `counting_ended` says
    why no further units count, or are known any longer, and is empty while they do.
    """

    title: str
    state: str
    reason: str
    began: datetime
    made: datetime
    alpha: float
    plan: str
    arms: tuple[ArmLine, ...]
    comparisons: tuple[ArmComparison, ...]
    counting_ended: str = ""
    shadows: tuple[ShadowLine, ...] = ()
    pairs: tuple[ShadowRow, ...] = ()
    """Those that differ, for people to compare."""


def report_of(running: RunningTrial, now: datetime, pairs: Sequence[ShadowRow] = ()) -> TrialReport:
    """As of now; some tens of milliseconds for each gate."""
    trial, tallies = running.trial, running.tallies(now)
    return TrialReport(
        title=f"{str(trial).capitalize()} of {trial.adapter}",
        state=_state(running),
        reason=trial.status.reason,
        began=trial.created_at,
        made=now,
        alpha=running.plan.question.alpha,
        plan=to_json(running.plan),
        arms=tuple(ArmLine(tallies[arm.name], _answers(trial, arm.name)) for arm in trial.arms),
        comparisons=tuple(
            ArmComparison(name, verdict, _curves(running, tallies, name, verdict))
            for name, verdict in running.verdicts(now).items()
        ),
        counting_ended=_counting_ended(running, tallies),
        shadows=_shadows(trial, pairs),
        pairs=tuple(pair for pair in pairs if not pair.is_same)[:_PAIRS],
    )


def _shadows(trial: Trial, pairs: Sequence[ShadowRow]) -> tuple[ShadowLine, ...]:
    names = {arm.id: arm.name for arm in trial.arms}
    lines: list[ShadowLine] = []
    for answered_by, arm_id in sorted({(pair.answered_by, pair.arm_id) for pair in pairs}):
        mine = [pair for pair in pairs if (pair.answered_by, pair.arm_id) == (answered_by, arm_id)]
        greedy = [pair for pair in mine if pair.is_greedy]
        mean = sum(pair.same_tokens for pair in greedy) / len(greedy) if greedy else math.nan
        same = sum(pair.is_same for pair in greedy)
        lines.append(ShadowLine(answered_by, names[arm_id], len(mine), len(greedy), same, mean))
    return tuple(lines)


def _state(running: RunningTrial) -> str:
    status = running.trial.status
    if isinstance(running.plan, RolloutPlan):
        share = running.plan.steps[status.step]
        return f"{status.state}, step {status.step + 1} of {len(running.plan.steps)}: {share:.3g}"
    return status.state


def _counting_ended(running: RunningTrial, tallies: Mapping[str, ArmTally]) -> str:
    if running.trial.ended_at and not any(tally.requests for tally in tallies.values()):
        return (
            "There are no figures: no request came at its last step, or what its arms saw is kept "
            "no longer, by retention.observations_days after its end."
        )
    if not running.is_full:
        return ""
    return (
        f"Counting has ended: {running.most_units:,} units have come, the most that count, and "
        "later ones change no figure; what these leave open needs another trial."
    )


def _answers(trial: Trial, name: str) -> str:
    arm = trial.arm(name)
    version = "the base model" if arm.version is None else str(arm.version)
    return f"{version}, merged" if arm.mode == "merged" else version


def _curves(
    running: RunningTrial, tallies: Mapping[str, ArmTally], name: str, verdict: Verdict
) -> tuple[Curve, ...]:
    question = running.plan.question
    return tuple(
        _curve(found.gate, tallies[name], tallies[CHAMPION], question.alpha)
        for found in verdict.answers
    )


def _curve(gate: Gate, challenger: ArmTally, champion: ArmTally, alpha: float) -> Curve:
    size = challenger.sample(gate.metric.name).size
    other = champion.sample(gate.metric.name).size
    if not size or (gate.against != "number" and not other):
        return Curve(gate, (), (), (), ())
    units = sorted({math.ceil(size * part) for part in np.geomspace(min(1, 10 / size), 1, _POINTS)})
    seen = [
        measure(
            gate,
            _first(challenger, gate, count),
            _first(champion, gate, math.ceil(other * count / size)),
            alpha,
        )
        for count in units
    ]
    return Curve(
        gate,
        tuple(units),
        tuple(found.estimate for found in seen),
        tuple(found.lower for found in seen),
        tuple(found.upper for found in seen),
    )


def _first(arm: ArmTally, gate: Gate, units: int) -> ArmTally:
    name = gate.metric.name
    return replace(arm, samples={name: arm.sample(name).first(units)})


def to_terminal(report: TrialReport) -> RenderableType:
    arms = Table("arm", "answers", "share", "units", "requests", "fallbacks", title="Arms")
    for arm in report.arms:
        tally = arm.tally
        counts = (tally.units, tally.requests, tally.fallbacks)
        arms.add_row(tally.name, arm.answers, f"{tally.share:.1%}", *map(str, counts))
    parts: list[RenderableType] = [f"[bold]{report.title}[/]  {report.state}", arms]
    if report.counting_ended:
        parts.append(report.counting_ended)
    for compared in report.comparisons:
        verdict, colour = compared.verdict, _COLOURS[compared.verdict.decision]
        text = f"[bold]{verdict.decision}[/]  {verdict.reason}"
        parts.append(Panel(text, title=compared.challenger, border_style=colour))
        if verdict.answers:
            parts.append(_gate_table(verdict.answers))
    if report.shadows:
        parts.append(_shadow_table(report.shadows))
    return Group(*parts)


def _shadow_table(lines: Sequence[ShadowLine]) -> Table:
    table = Table(
        "answered by",
        "also by",
        "pairs",
        "greedy",
        "of these the same",
        "tokens until they differ",
        title="Shadows",
    )
    for line in lines:
        mean = f"{line.mean_same_tokens:.1f}" if line.greedy else ""
        counts = map(str, (line.pairs, line.greedy, line.same))
        table.add_row(line.answered_by, line.shadowed_by, *counts, mean)
    return table


def _gate_table(answers: Sequence[GateAnswer]) -> Table:
    table = Table("gate", "state", "now", "between", "units", "more units needed")
    for found in answers:
        gate, seen = found.gate, found.interval
        table.add_row(
            str(gate),
            found.state,
            gate.shown(seen.estimate),
            _between(found),
            str(seen.units),
            _needed(found),
        )
    return table


def _between(found: GateAnswer) -> str:
    gate, seen = found.gate, found.interval
    return f"{gate.shown(seen.lower)} and {gate.shown(seen.upper)}"


def _needed(found: GateAnswer) -> str:
    if found.state is not GateState.OPEN:
        return ""
    return "cannot be said" if found.more_units is None else f"about {found.more_units}"


def to_html(report: TrialReport) -> str:
    """One page that needs nothing else."""
    # Matplotlib takes half a second to import, which only this needs.
    from loragate.server.experiments.plots import plot_arms, plot_curve

    environment = Environment(
        loader=PackageLoader("loragate.server.experiments", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        arms_plot=plot_arms([arm.tally for arm in report.arms]),
        plots={
            (compared.challenger, i): plot_curve(
                curve.gate, curve.units, curve.estimates, curve.lowers, curve.uppers
            )
            for compared in report.comparisons
            for i, curve in enumerate(compared.curves)
            if curve.units
        },
        between=_between,
        needed=_needed,
    )
