"""Rollouts and experiments on this machine, without a server."""

from collections.abc import Sequence

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.pages import Page
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.trial_records import TrialKind
from loragate.server.admin.trial_shapes import (
    report_view,
    trial_view,
    trial_views,
)
from loragate.server.admin.trial_views import (
    ExperimentRequest,
    ReportView,
    RolloutRequest,
    TrialChange,
    TrialView,
)
from loragate.server.experiments.service import TrialService


class LocalTrials:
    """The part of `LocalAdmin` that needs statistics."""

    def __init__(self, registry: Registry, actor: str) -> None:
        self._trial_service = TrialService(registry)
        self._actor = actor

    def start_rollout(self, adapter: AdapterName, body: RolloutRequest) -> TrialView:
        return trial_view(self._trial_service.start_rollout(adapter, body.spec(), self._actor))

    def start_experiment(self, adapter: AdapterName, body: ExperimentRequest) -> TrialView:
        spec = body.spec()
        return trial_view(self._trial_service.start_experiment(adapter, spec, self._actor))

    def trials(self, tenant: str | None, kind: TrialKind | None, page: Page) -> Sequence[TrialView]:
        return trial_views(self._trial_service.trials(tenant, kind, page))

    def report(self, adapter: AdapterName, kind: TrialKind | None) -> ReportView:
        trial = self._trial_service.trial(adapter, kind)
        return report_view(trial, self._trial_service.report(trial.id))

    def change(self, adapter: AdapterName, body: TrialChange) -> TrialView:
        moved = self._trial_service.change(
            adapter, body.action, body.arm, body.reason, self._actor, body.kind
        )
        return trial_view(moved)
