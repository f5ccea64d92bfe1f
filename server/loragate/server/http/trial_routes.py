"""Rollouts and experiments in `/admin/v1`."""

from fastapi import APIRouter, Response, status

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.trial_records import TrialKind
from loragate.server.admin.administration import Administration
from loragate.server.admin.paging import AskedPage, name_next
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

_ADAPTER = "/tenants/{tenant}/adapters/{name}"
_TAGS = ["rollouts and experiments"]


def add_trials(router: APIRouter, administration: Administration) -> None:
    @router.post(_ADAPTER + "/rollouts", status_code=status.HTTP_201_CREATED, tags=[*_TAGS])
    async def start_rollout(tenant: str, name: str, body: RolloutRequest) -> TrialView:
        """Move requests step by step to another version, and back at once if a gate fails."""
        adapter = AdapterName(tenant, name)
        return trial_view(await administration.start_rollout(adapter, body.spec()))

    @router.post(_ADAPTER + "/experiments", status_code=status.HTTP_201_CREATED, tags=[*_TAGS])
    async def start_experiment(tenant: str, name: str, body: ExperimentRequest) -> TrialView:
        """Hold arms side by side, to find out which is better."""
        adapter = AdapterName(tenant, name)
        return trial_view(await administration.start_experiment(adapter, body.spec()))

    @router.get("/trials", tags=[*_TAGS])
    async def list_trials(
        page: AskedPage,
        response: Response,
        tenant: str | None = None,
        kind: TrialKind | None = None,
    ) -> list[TrialView]:
        """List rollouts and experiments, newest first."""
        found = await administration.trials(tenant, kind, page)
        return trial_views(name_next(response, found, page, lambda trial: str(trial.id)))

    @router.get(_ADAPTER + "/trial", tags=[*_TAGS])
    async def show_trial(tenant: str, name: str, kind: TrialKind | None = None) -> ReportView:
        """Show the adapter's newest rollout or experiment with its figures and its verdict."""
        trial, report = await administration.trial(AdapterName(tenant, name), kind)
        return await administration.draw(report_view, trial, report)

    @router.post(_ADAPTER + "/trial", tags=[*_TAGS])
    async def change_trial(tenant: str, name: str, body: TrialChange) -> TrialView:
        """Pause, resume, end or decide the adapter's rollout or experiment."""
        adapter = AdapterName(tenant, name)
        moved = await administration.change_trial(
            adapter, body.action, body.arm, body.reason, body.kind
        )
        return trial_view(moved)
