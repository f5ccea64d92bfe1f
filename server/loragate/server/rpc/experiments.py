"""`loragate.v1.Experiments`: rollouts and experiments for whoever holds the admin key."""

from datetime import datetime
from typing import get_args

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.trial_records import Trial, TrialKind
from loragate.server.admin.administration import Administration
from loragate.server.admin.trial_shapes import report_view, trial_view
from loragate.server.errors import InvalidRequest
from loragate.server.experiments.specs import Action, ExperimentSpec, RolloutSpec
from loragate.server.rpc.calls import AdminCalls
from loragate.server.rpc.paging import asked_page, next_after
from loragate.v1 import experiments_pb2 as pb
from loragate.v1 import experiments_pb2_grpc

_ACTIONS: dict["pb.ChangeTrialRequest.Action", Action] = {
    pb.ChangeTrialRequest.ACTION_PAUSE: "pause",
    pb.ChangeTrialRequest.ACTION_RESUME: "resume",
    pb.ChangeTrialRequest.ACTION_ABORT: "abort",
    pb.ChangeTrialRequest.ACTION_PROMOTE: "promote",
    pb.ChangeTrialRequest.ACTION_ROLLBACK: "rollback",
    pb.ChangeTrialRequest.ACTION_DECIDE: "decide",
}


class ExperimentsService(experiments_pb2_grpc.ExperimentsServicer):
    """Rollouts and experiments for operators."""

    def __init__(self, administration: Administration, calls: AdminCalls) -> None:
        self._administration = administration
        self._calls = calls

    async def StartRollout(
        self,
        request: pb.StartRolloutRequest,
        context: grpc.aio.ServicerContext[pb.StartRolloutRequest, pb.StartRolloutResponse],
    ) -> pb.StartRolloutResponse:
        async with self._calls.answering(context):
            usual = RolloutSpec(request.to)
            spec = RolloutSpec(
                to=request.to,
                percentages=tuple(request.steps) or usual.percentages,
                every_seconds=request.every_seconds
                if request.HasField("every_seconds")
                else usual.every_seconds,
                gates=tuple(request.gates),
                alpha=request.alpha if request.HasField("alpha") else usual.alpha,
                shadow=request.shadow,
                is_merged=request.merged,
            )
            adapter = AdapterName.parse(request.adapter)
            begun = await self._administration.start_rollout(adapter, spec)
            return pb.StartRolloutResponse(trial=_trial(begun))

    async def StartExperiment(
        self,
        request: pb.StartExperimentRequest,
        context: grpc.aio.ServicerContext[pb.StartExperimentRequest, pb.StartExperimentResponse],
    ) -> pb.StartExperimentResponse:
        async with self._calls.answering(context):
            usual = ExperimentSpec(tuple(request.arms), tuple(request.gates))
            spec = ExperimentSpec(
                arms=usual.arms,
                gates=usual.gates,
                alpha=request.alpha if request.HasField("alpha") else usual.alpha,
                values=request.values if request.HasField("values") else usual.values,
                window_seconds=usual.window_seconds,
                shadow=request.shadow,
                is_automatic=request.automatic,
            )
            adapter = AdapterName.parse(request.adapter)
            begun = await self._administration.start_experiment(adapter, spec)
            return pb.StartExperimentResponse(trial=_trial(begun))

    async def ListTrials(
        self,
        request: pb.ListTrialsRequest,
        context: grpc.aio.ServicerContext[pb.ListTrialsRequest, pb.ListTrialsResponse],
    ) -> pb.ListTrialsResponse:
        async with self._calls.answering(context):
            tenant = request.tenant if request.HasField("tenant") else None
            kind = _kind(request.kind) if request.HasField("kind") else None
            page = asked_page(request, request.HasField("limit"))
            trials = await self._administration.trials(tenant, kind, page)
            return pb.ListTrialsResponse(
                trials=map(_trial, trials),
                next_after=next_after(trials, page, lambda trial: str(trial.id)),
            )

    async def GetTrial(
        self,
        request: pb.GetTrialRequest,
        context: grpc.aio.ServicerContext[pb.GetTrialRequest, pb.GetTrialResponse],
    ) -> pb.GetTrialResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            kind = _kind(request.kind) if request.HasField("kind") else None
            trial, report = await self._administration.trial(adapter, kind)
            view = await self._administration.draw(report_view, trial, report)
            return pb.GetTrialResponse(
                trial=_trial(trial),
                verdicts=[
                    pb.Verdict(
                        challenger=verdict.challenger,
                        decision=verdict.decision,
                        reason=verdict.reason,
                        missing=verdict.missing,
                    )
                    for verdict in view.verdicts
                ],
                text=view.text,
                html=view.html,
            )

    async def ChangeTrial(
        self,
        request: pb.ChangeTrialRequest,
        context: grpc.aio.ServicerContext[pb.ChangeTrialRequest, pb.ChangeTrialResponse],
    ) -> pb.ChangeTrialResponse:
        async with self._calls.answering(context):
            action = _ACTIONS.get(request.action)
            if action is None:
                raise InvalidRequest("Say what is to be done: set the action.", param="action")
            adapter = AdapterName.parse(request.adapter)
            kind = _kind(request.kind) if request.HasField("kind") else None
            moved = await self._administration.change_trial(
                adapter, action, request.arm, request.reason, kind
            )
            return pb.ChangeTrialResponse(trial=_trial(moved))


def _kind(text: str) -> TrialKind:
    for kind in get_args(TrialKind):
        if kind == text:
            return kind
    raise InvalidRequest(f"'{text}' is no kind; write rollout or experiment.", param="kind")


def _trial(trial: Trial) -> pb.Trial:
    view = trial_view(trial)
    return pb.Trial(
        id=view.id,
        kind=view.kind,
        adapter=view.adapter,
        state=view.state,
        reason=view.reason,
        arms=[
            pb.Arm(name=arm.name, answers=arm.answers, mode=arm.mode, share=arm.share)
            for arm in view.arms
        ],
        gates=view.gates,
        steps=view.steps,
        step=view.step,
        created_at=_timestamp(view.created_at),
        ended_at=_timestamp(view.ended_at) if view.ended_at else None,
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
