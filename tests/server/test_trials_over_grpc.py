"""Rollouts over gRPC: operators conduct them, and answers say which arm gave them."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor

from loragate.v1 import experiments_pb2 as pb
from loragate.v1 import inference_pb2
from loragate.v1.experiments_pb2_grpc import ExperimentsStub
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients.grpc_messages import call, refusal
from support.server.small_server import Served, ServeWith
from support.server.trial_traffic import under_way, with_two_versions

METHODS = list[MethodDescriptor](pb.DESCRIPTOR.services_by_name["Experiments"].methods)
ROLLOUT = pb.StartRolloutRequest(
    adapter="acme/support", to="v2", steps=[100], every_seconds=60, gates=["error_rate<1%"]
)


@pytest_asyncio.fixture
async def two(serve_with: ServeWith, tmp_path: Path) -> AsyncIterator[Served]:
    async with with_two_versions(serve_with, tmp_path) as served, served.server.listening():
        yield served


@pytest_asyncio.fixture
async def channel(two: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with two.channel() as channel:
        yield channel


def as_admin(served: Served) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {served.admin_key}"),)


async def test_rollout_is_conducted_over_grpc(two: Served, channel: grpc.aio.Channel) -> None:
    admin, key = ExperimentsStub(channel), as_admin(two)

    begun = (await admin.StartRollout(ROLLOUT, metadata=key)).trial
    assert [(arm.name, arm.answers, arm.share) for arm in begun.arms] == [
        ("challenger", "acme/support@v2", 1.0),
        ("champion", "acme/support@v1", 0.0),
    ]
    again = await refusal(admin.StartRollout(ROLLOUT, metadata=key))
    assert again.code() is grpc.StatusCode.FAILED_PRECONDITION
    shown = await admin.GetTrial(pb.GetTrialRequest(adapter="acme/support"), metadata=key)
    assert [verdict.decision for verdict in shown.verdicts] == ["INCONCLUSIVE"]
    assert shown.html.startswith("<!doctype html>")
    change = pb.ChangeTrialRequest(adapter="acme/support", action="ACTION_ABORT", reason="enough")
    ended = (await admin.ChangeTrial(change, metadata=key)).trial
    assert (ended.state, ended.reason) == ("ABORTED", "enough")
    listed = await admin.ListTrials(pb.ListTrialsRequest(tenant="acme"), metadata=key)
    assert [trial.state for trial in listed.trials] == ["ABORTED"]


async def test_experiment_is_begun_and_decided_over_grpc(
    two: Served, channel: grpc.aio.Channel
) -> None:
    admin, key = ExperimentsStub(channel), as_admin(two)
    asked = pb.StartExperimentRequest(
        adapter="acme/support", arms=["champion=v1", "new=v2"], gates=["thumbs>=champion"]
    )
    begun = (await admin.StartExperiment(asked, metadata=key)).trial
    assert [arm.share for arm in begun.arms] == [0.5, 0.5]
    change = pb.ChangeTrialRequest(adapter="acme/support", action="ACTION_DECIDE")
    early = await refusal(admin.ChangeTrial(change, metadata=key))
    assert "too early" in (early.details() or "")
    change = pb.ChangeTrialRequest(adapter="acme/support", action="ACTION_PROMOTE", arm="new")
    assert (await admin.ChangeTrial(change, metadata=key)).trial.state == "PASSED"
    nothing = await refusal(
        admin.ChangeTrial(pb.ChangeTrialRequest(adapter="acme/support"), metadata=key)
    )
    assert nothing.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_trailers_say_which_arm_answered_and_by_what_it_was_chosen(
    two: Served, channel: grpc.aio.Channel
) -> None:
    await ExperimentsStub(channel).StartRollout(ROLLOUT, metadata=as_admin(two))
    await under_way(two)
    ask = inference_pb2.ChatRequest(
        model="support",
        messages=[inference_pb2.Message(role="user", content="hi")],
        sampling=inference_pb2.SamplingParams(max_tokens=1),
    )
    key = ("authorization", two.auth["authorization"])

    for metadata, unit in (
        ((key, ("x-conversation-id", "talk-1")), "conversation"),
        ((key,), "key"),
    ):
        answering = InferenceStub(channel).Chat(ask, metadata=metadata)
        await answering
        for sent in (await answering.initial_metadata(), await answering.trailing_metadata()):
            said = dict(sent)
            assert said["x-loragate-arm"] == "challenger"
            assert said["x-loragate-adapter"] == "acme/support@v2"
            assert said["x-loragate-experiment"] == "rollout 1"
            assert said["x-loragate-unit"] == unit


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_tenants_key_opens_no_method(
    two: Served, channel: grpc.aio.Channel, method: MethodDescriptor
) -> None:
    metadata = (("authorization", two.auth["authorization"]),)
    failure = await refusal(call(channel, method, metadata=metadata))
    assert failure.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await refusal(call(channel, method))).code() is grpc.StatusCode.UNAUTHENTICATED
