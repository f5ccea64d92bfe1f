"""Rollouts and experiments for operators: begun, changed by hand, reported. Its calls block."""

import re
from collections.abc import Sequence

from loragate.adapters.errors import AliasNotFound, TrialNotFound
from loragate.adapters.names import CHAMPION, AdapterName, parse_version
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.pages import FIRST_PAGE, Page
from loragate.adapters.registry.records import AdapterRecord
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.trial_records import ArmMode, NewArm, Trial, TrialKind
from loragate.server.core import BASE
from loragate.server.errors import InvalidRequest, RolloutMoveRefused
from loragate.server.experiments import rollout_plan
from loragate.server.experiments.gates import Gate, parse_gate
from loragate.server.experiments.plan_bounds import (
    MOST_ARMS,
    MOST_STEPS,
    check_count,
    check_gates,
    check_reason,
)
from loragate.server.experiments.plans import (
    CHALLENGER,
    ExperimentPlan,
    plan_of,
    to_json,
)
from loragate.server.experiments.report import TrialReport, report_of
from loragate.server.experiments.rollout_plan import RolloutPlan, RolloutState
from loragate.server.experiments.running import RunningTrial
from loragate.server.experiments.specs import Action, ExperimentSpec, RolloutSpec
from loragate.server.experiments.tally import UnitRule
from loragate.server.experiments.verdict import decide

_ARM = re.compile(r"([a-z][a-z0-9-]{0,31})=([^+:]+)(\+merged)?(?::(\d+(?:\.\d+)?)%?)?")


class TrialService:
    """What operators may do. `actor` is who asks, for the audit log."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def start_rollout(self, adapter: AdapterName, spec: RolloutSpec, actor: str) -> Trial:
        """Raises InvalidRequest, and what `Registry.start_trial` raises."""
        check_count(spec.percentages, MOST_STEPS, "steps", "steps")
        plan = RolloutPlan(
            rollout_plan.parse_steps([str(step) for step in spec.percentages]),
            spec.every_seconds,
            _gates(spec.gates),
            spec.alpha,
            spec.shadow,
        )
        page = self._registry.versions.show(adapter)
        champion, number = _champion_of(page), _number(page, spec.to)
        mode: ArmMode = "merged" if spec.is_merged else "unmerged"
        champion_mode = page.aliases[CHAMPION].desired_mode
        if (number, mode) == (champion, champion_mode):
            raise InvalidRequest(f"v{number} is {adapter}'s champion already.", param="to")
        arms = NewArm(CHALLENGER, number, mode), NewArm(CHAMPION, champion, champion_mode)
        return self._start("rollout", adapter, arms, plan, actor)

    def start_experiment(self, adapter: AdapterName, spec: ExperimentSpec, actor: str) -> Trial:
        """Raises InvalidRequest, and what `Registry.start_trial` raises."""
        check_count(spec.arms, MOST_ARMS, "arms", "arms")
        page = self._registry.versions.show(adapter)
        arms = _arms(page, spec.arms)
        plan = ExperimentPlan(
            tuple((arm.name, arm.share) for arm in arms),
            _gates(spec.gates),
            spec.alpha,
            UnitRule(spec.values, spec.window_seconds),
            spec.shadow,
            spec.is_automatic,
        )
        champion = next(arm for arm in arms if arm.name == CHAMPION)
        if champion.number not in (None, _champion_of(page)):
            raise InvalidRequest(
                f"The arm 'champion' is what serves now, v{_champion_of(page)}, or base; "
                f"not v{champion.number}.",
                param="arms",
            )
        return self._start("experiment", adapter, arms, plan, actor)

    def trial(self, adapter: AdapterName, kind: TrialKind | None = None) -> Trial:
        """The adapter's newest. Raises TrialNotFound."""
        trial = self._registry.trials.newest(adapter, kind)
        if trial is None:
            raise TrialNotFound(f"of {adapter}")
        return trial

    def trials(
        self, tenant: str | None = None, kind: TrialKind | None = None, page: Page = FIRST_PAGE
    ) -> Sequence[Trial]:
        """Newest first; after a trial's id."""
        return self._registry.trials.list(tenant, kind, page.limit, page.after_number())

    def change(
        self,
        adapter: AdapterName,
        action: Action,
        arm: str,
        why: str,
        actor: str,
        kind: TrialKind | None = None,
    ) -> Trial:
        """What operators do to the adapter's newest trial, of this kind if one is named. `arm` is
        the one to promote; empty for the only challenger. Raises RolloutMoveRefused,
        InvalidRequest, and what `Registry.move_trial` raises.
        """
        check_reason(why)
        trial = self.trial(adapter, kind)
        progress = rollout_plan.progress_of(trial.status)
        promoted = None
        match action:
            case "pause":
                moved = rollout_plan.pause(progress, why or "paused by hand")
            case "resume":
                moved = rollout_plan.resume(progress, why or "resumed by hand")
            case "abort":
                moved = rollout_plan.abort(progress, why or "ended by hand")
            case "rollback":
                moved = rollout_plan.roll_back(progress, why or "rolled back by hand")
            case "promote":
                promoted = _promotable(trial, arm)
                moved = rollout_plan.win(progress, why or f"{promoted} was promoted by hand")
            case "decide":
                promoted, reason = self._decided(trial)
                end = rollout_plan.win if promoted else rollout_plan.roll_back
                moved = end(progress, reason)
        return self._registry.trials.move(
            trial,
            rollout_plan.status_of(moved),
            actor,
            is_over=moved.state.is_over,
            promote=promoted,
        )

    def report(self, trial_id: int) -> TrialReport:
        """Raises TrialNotFound, and UnreadablePlan."""
        trial, pairs = (
            self._registry.trials.get(trial_id),
            self._registry.observations.shadow_pairs(trial_id),
        )
        return report_of(self._counted(trial), wall_clock(), pairs)

    def _counted(self, trial: Trial) -> RunningTrial:
        running = RunningTrial(trial, plan_of(trial))
        step, rule = trial.status.step, running.counting_rule
        with self._registry.observations.step_figures(trial.id, step, rule) as figures:
            running.recount(figures)
        return running

    def _decided(self, trial: Trial) -> tuple[str | None, str]:
        verdicts = self._counted(trial).verdicts(wall_clock())
        decision = decide(verdicts)
        if decision is None:
            reasons = "; ".join(
                f"{arm} is {verdict.decision}: {verdict.reason}"
                for arm, verdict in verdicts.items()
            )
            raise RolloutMoveRefused(
                f"It is too early to decide ({reasons}); wait, or promote or roll back by hand."
            )
        arm, why = decision
        return (None if arm is None else _promotable(trial, arm)), why

    def _start(
        self,
        kind: TrialKind,
        adapter: AdapterName,
        arms: Sequence[NewArm],
        plan: RolloutPlan | ExperimentPlan,
        actor: str,
    ) -> Trial:
        require_modes(self._registry, adapter, arms)
        state = str(RolloutState.RUNNING)
        return self._registry.trials.start(kind, adapter, arms, to_json(plan), state, actor)


def require_modes(registry: Registry, adapter: AdapterName, arms: Sequence[NewArm]) -> None:
    """Whether every arm's version is served in the arm's mode. Raises InvalidRequest."""
    merged = {(v.tenant, v.name, v.number) for v in registry.snapshot().served_merged()}
    for arm in arms:
        if arm.mode == "merged" and (adapter.tenant, adapter.name, arm.number) not in merged:
            raise InvalidRequest(
                f"Arm '{arm.name}' is to be merged, and no engine serves {adapter}@v{arm.number} "
                f"merged; start one with `loragate merge {adapter}@v{arm.number} --serve`, or take "
                "the version unmerged.",
                param="arms",
            )


def _gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    check_gates(texts)
    return tuple(map(parse_gate, texts))


def _champion_of(page: AdapterRecord) -> int:
    champion = page.aliases.get(CHAMPION)
    if champion is None:
        raise InvalidRequest(
            f"Adapter {page.name} has no champion to compare with; promote a version first."
        )
    return champion.desired.number


def _number(page: AdapterRecord, selector: str) -> int:
    alias = page.aliases.get(selector)
    if alias is not None:
        return alias.desired.number
    if not selector.startswith("v"):
        raise AliasNotFound(page.name.tenant, page.name.name, selector)
    return parse_version(selector)


def _arms(page: AdapterRecord, texts: Sequence[str]) -> tuple[NewArm, ...]:
    arms: list[NewArm] = []
    for text in texts:
        match = _ARM.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"'{text}' is no arm; write one as in champion=v3:50% or merged=v3+merged:50%.",
                param="arms",
            )
        name, selector, merged, percent = match.groups()
        number = None if selector == BASE else _number(page, selector)
        share = float(percent) / 100 if percent else 1 / len(texts)
        arms.append(NewArm(name, number, "merged" if merged else "unmerged", share))
    return tuple(arms)


def _promotable(trial: Trial, name: str) -> str:
    challengers = [arm for arm in trial.arms if arm.name != CHAMPION]
    if not name and len(challengers) == 1:
        name = challengers[0].name
    for arm in challengers:
        if arm.name == name and arm.version is not None:
            return name
    names = ", ".join(arm.name for arm in challengers if arm.version is not None)
    raise InvalidRequest(f"Name the arm to promote: {names or 'none can be'}.", param="arm")
