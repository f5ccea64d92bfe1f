"""The server's own nouns of rollouts and experiments as views."""

import io
import math
from collections.abc import Sequence

from rich.console import Console

from loragate.adapters.registry.trial_records import Trial
from loragate.server.admin.trial_views import (
    ArmFiguresView,
    ArmView,
    GateView,
    ReportView,
    TrialView,
    VerdictView,
)
from loragate.server.core import BASE
from loragate.server.errors import UnreadablePlan
from loragate.server.experiments.confidence_sequences import Interval
from loragate.server.experiments.gates import GateAnswer
from loragate.server.experiments.plans import CHALLENGER, plan_of
from loragate.server.experiments.report import (
    ArmComparison,
    ArmLine,
    TrialReport,
    to_html,
    to_terminal,
)
from loragate.server.experiments.rollout_plan import RolloutPlan, progress_of

_WIDTH = 110  # characters of a report for a terminal


def trial_view(trial: Trial) -> TrialView:
    """Of one whose plan cannot be read, only what the registry itself says."""
    plan, unreadable = None, ""
    try:
        plan = plan_of(trial)
    except UnreadablePlan as error:
        unreadable = str(error)
    rollout = plan if isinstance(plan, RolloutPlan) else None
    return TrialView(
        id=trial.id,
        kind=trial.kind,
        adapter=str(trial.adapter),
        state=trial.status.state,
        reason=trial.status.reason if trial.ended_at else unreadable or trial.status.reason,
        arms=tuple(
            ArmView(
                name=arm.name,
                answers=BASE if arm.version is None else str(arm.version),
                mode=arm.mode,
                share=_share(trial, rollout, arm.name) if rollout else arm.share,
            )
            for arm in trial.arms
        ),
        gates=tuple(map(str, plan.gates)) if plan else (),
        steps=rollout.steps if rollout else (),
        step=trial.status.step,
        created_at=trial.created_at,
        ended_at=trial.ended_at,
    )


def trial_views(trials: Sequence[Trial]) -> list[TrialView]:
    return [trial_view(trial) for trial in trials]


def report_view(trial: Trial, report: TrialReport) -> ReportView:
    """Draws: it takes some tens of milliseconds a gate."""
    return ReportView(
        trial=trial_view(trial),
        arms=tuple(map(_figures, report.arms)),
        verdicts=tuple(map(_verdict, report.comparisons)),
        text=_text(report),
        html=to_html(report),
    )


def _share(trial: Trial, plan: RolloutPlan, name: str) -> float:
    share = progress_of(trial.status).share(plan)
    return share if name == CHALLENGER else 1 - share


def _figures(line: ArmLine) -> ArmFiguresView:
    tally = line.tally
    return ArmFiguresView(
        name=tally.name,
        units=tally.units,
        unit_kinds={str(kind): count for kind, count in tally.unit_kinds.items()},
        requests=tally.requests,
        fallbacks=tally.fallbacks,
    )


def _verdict(compared: ArmComparison) -> VerdictView:
    verdict = compared.verdict
    return VerdictView(
        challenger=compared.challenger,
        decision=str(verdict.decision),
        reason=verdict.reason,
        missing=verdict.missing,
        sample_ratio_p=verdict.ratio.p_value,
        gates=tuple(map(_gate, verdict.answers)),
    )


def _gate(found: GateAnswer) -> GateView:
    seen: Interval = found.interval
    return GateView(
        gate=str(found.gate),
        state=str(found.state),
        estimate=_finite(seen.estimate),
        lower=_finite(seen.lower),
        upper=_finite(seen.upper),
        units=seen.units,
        missing=found.missing,
        more_units=found.more_units,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(report: TrialReport) -> str:
    written = io.StringIO()
    Console(file=written, force_terminal=True, width=_WIDTH).print(to_terminal(report))
    return written.getvalue()
