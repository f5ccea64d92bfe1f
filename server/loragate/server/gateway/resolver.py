"""Where a request goes: its tenant's adapter version, the arm of a trial, merged or not."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from loragate.adapters.errors import AliasNotServing
from loragate.adapters.registry.api_keys import hash_key
from loragate.server.admission.admission import Arrival
from loragate.server.core import Caller, Request, Route
from loragate.server.errors import AdapterUnavailable
from loragate.server.experiments.assignment import unit_of
from loragate.server.experiments.trial_router import ClosedRecord, TrialAssignment, TrialRouter
from loragate.server.gateway.routing import Router
from loragate.server.merged.models import MergedModels

_FIRST_VERSION_SECONDS = 5.0
_MOST_AWAIT_FIRST_VERSION = 16  # of one tenant
_LOOK_AGAIN_SECONDS = 0.02


@dataclass(slots=True)
class Resolved:
    """A request's route as it is now, and its assignment where its adapter has a trial."""

    route: Route
    assignment: TrialAssignment | None = None
    _is_counted: bool = False

    def count(self, request_id: str) -> None:
        """The trial counts the request from now on, however it ends. Once for each request."""
        if self.assignment is not None and not self._is_counted:
            self._is_counted = True
            self.assignment.admit(request_id)

    def unmerge(self) -> Route:
        """The merged model cannot answer this request: its version does beside the base model."""
        self.route = self.route.unmerged()
        if self.assignment is not None:
            self.assignment.answer_by(self.route)
        return self.route

    def fall_back(self, error: AdapterUnavailable) -> bool:
        """To the trial's champion, where the arm's version is at fault; false where it is not."""
        if self.assignment is None or _is_busy(error) or not self.assignment.fall_back(str(error)):
            return False
        self.route = self.assignment.route
        return True

    def end(self, record: ClosedRecord) -> None:
        """Tells the trial how the request ended."""
        if self.assignment is not None:
            self.assignment.end(record)


class Resolver:
    """Asks the registry's snapshot, the trials and the merged models, in that order."""

    def __init__(self, router: Router, trial_router: TrialRouter, merged: MergedModels) -> None:
        self._router = router
        self._trial_router = trial_router
        self._merged = merged
        self._await_first_version = Counter[str]()  # by tenant

    async def resolve(self, request: Request, arrival: Arrival) -> Resolved:
        """Raises ModelNotFound, and AliasNotServing where a first version is not loaded in time."""
        route = self._merged.reachable(await self._route(arrival.tenant, request.model))
        assignment = self._assign(request, route, arrival.caller)
        return Resolved(route if assignment is None else assignment.route, assignment)

    def _assign(self, request: Request, route: Route, caller: Caller) -> TrialAssignment | None:
        """The request's arm in a rollout or an experiment, if its adapter has one."""
        active = self._trial_router.active_trial(route.tenant, request.model)
        if active is None:
            return None
        key = hash_key(caller.api_key or "")
        unit = unit_of(request.options.user, caller.conversation, key)
        assignment = self._trial_router.assign(active, route, unit)
        if assignment is not None:
            reachable = self._merged.reachable(assignment.route)
            if reachable is not assignment.route:
                assignment.fall_back(f"{assignment.route.answers} cannot answer now")
                assignment.answer_by(self._merged.reachable(assignment.route))
        return assignment

    async def _route(self, tenant: str, model: str) -> Route:
        """Waits for an adapter's first version, which was promoted a moment ago, to be loaded.

        Who waits here is in no queue yet, so only a few of a tenant do; others come again.
        """
        try:
            return self._router.route(tenant, model)
        except AliasNotServing:
            waiting = self._await_first_version
            if waiting[tenant] >= _MOST_AWAIT_FIRST_VERSION:
                raise
        waiting[tenant] += 1
        try:
            return await self._first_route(tenant, model)
        finally:
            waiting[tenant] -= 1
            if not waiting[tenant]:
                del waiting[tenant]

    async def _first_route(self, tenant: str, model: str) -> Route:
        deadline = time.monotonic() + _FIRST_VERSION_SECONDS
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            try:
                return self._router.route(tenant, model)
            except AliasNotServing:
                if time.monotonic() > deadline:
                    raise


def _is_busy(error: AdapterUnavailable) -> bool:
    """Whether the server has too much to do, and the version is not at fault."""
    return error.code == "no_adapter_slot"
