"""What a rollout or an experiment may ask for is the same by HTTP and by gRPC."""

import json
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest_asyncio

from loragate.adapters.registry.trial_records import NewArm
from loragate.v1 import experiments_pb2 as pb
from loragate.v1.experiments_pb2_grpc import ExperimentsStub
from support.clients.grpc_messages import refusal
from support.server.small_server import SUPPORT, Served, ServeWith, bearer
from support.server.trial_traffic import with_two_versions
from support.waiting import until

TRIALS = "/admin/v1/tenants/acme/adapters/support"
ROLLOUT: Mapping[str, Any] = {"to": "v2", "steps": [50, 100], "every_seconds": 60}
EXPERIMENT: Mapping[str, Any] = {
    "arms": ["champion=v1:50%", "new=v2:50%"],
    "gates": ["thumbs>=champion-0.1"],
}
ROLLOUTS: list[dict[str, Any]] = [
    {"every_seconds": math.inf},
    {"every_seconds": math.nan},
    {"every_seconds": 0.0},
    {"every_seconds": -1.0},
    {"every_seconds": 5e-324},
    {"every_seconds": 1e300},
    {"steps": [5e-324, 100]},
    {"steps": [math.nan]},
    {"steps": [math.inf]},
    {"steps": [-1.0]},
    {"steps": [50, 50]},
    {"steps": [99.9999999999]},
    {"steps": [i / 2 for i in range(1, 102)]},
    {"alpha": 0.0},
    {"alpha": 5e-324},
    {"alpha": math.nan},
    {"alpha": 0.5},
    {"shadow": -0.1},
    {"shadow": 1.1},
    {"shadow": math.nan},
    {"gates": ["error_rate<1%"] * 21},
    {"gates": ["ttft_p95<" + "9" * 400 + "x"]},
    {"gates": ["ttft_p95<0." + "0" * 300 + "1x"]},
    {"gates": ["ttft_p95<0." + "0" * 20 + "1x"]},
]
EXPERIMENTS: list[dict[str, Any]] = [
    {"values": 0},
    {"values": -1},
    {"values": 1001},
    {"alpha": 5e-324},
    {"alpha": math.inf},
    {"shadow": math.inf},
    {"arms": []},
    {"arms": ["champion=v1"] * 21},
    {"arms": ["champion=v1:99.9999999999%", "new=v2:0.0000000001%"]},
    {"arms": ["champion=v1:" + "9" * 400 + "%", "new=v2:50%"]},
    {"arms": ["champion=v1:0." + "0" * 330 + "1%", "new=v2:100%"]},
    {"gates": []},
    {"gates": ["thumbs>=champion-0.1"] * 21},
]


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


async def by_http(served: Served, path: str, body: Mapping[str, Any]) -> httpx.Response:
    text = json.dumps(body).replace("Infinity", "1e999")  # a number, by JSON's grammar
    headers = bearer(served.admin_key) | {"content-type": "application/json"}
    return await served.client.post(path, content=text, headers=headers)


async def test_what_no_plan_may_ask_for_is_refused_by_both_transports(
    two: Served, channel: grpc.aio.Channel
) -> None:
    admin, key = ExperimentsStub(channel), as_admin(two)
    for change in ROLLOUTS:
        asked = pb.StartRolloutRequest(adapter="acme/support", **{**ROLLOUT, **change})
        refused = await refusal(admin.StartRollout(asked, metadata=key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT, (change, refused.details())
        reply = await by_http(two, f"{TRIALS}/rollouts", {**ROLLOUT, **change})
        assert reply.status_code == 400, (change, reply.text)
    for change in EXPERIMENTS:
        asked = pb.StartExperimentRequest(adapter="acme/support", **{**EXPERIMENT, **change})
        refused = await refusal(admin.StartExperiment(asked, metadata=key))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT, (change, refused.details())
        reply = await by_http(two, f"{TRIALS}/experiments", {**EXPERIMENT, **change})
        assert reply.status_code == 400, (change, reply.text)
    assert two.registry.trials.list() == ()


async def test_reason_that_is_too_long_is_refused_by_both_transports(
    two: Served, channel: grpc.aio.Channel
) -> None:
    assert (await by_http(two, f"{TRIALS}/rollouts", ROLLOUT)).status_code == 201
    reply = await by_http(two, f"{TRIALS}/trial", {"action": "abort", "reason": "x" * 1001})
    assert reply.status_code == 400
    change = pb.ChangeTrialRequest(adapter="acme/support", action="ACTION_ABORT", reason="x" * 1001)
    refused = await refusal(ExperimentsStub(channel).ChangeTrial(change, metadata=as_admin(two)))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [trial.status.state for trial in two.registry.trials.list()] == ["RUNNING"]


async def test_trial_whose_plan_cannot_be_read_is_listed_and_ended(
    two: Served, channel: grpc.aio.Channel
) -> None:
    """As one that an earlier version kept, which let an endless step through and wrote null."""
    plan = '{"type":"rollout","steps":[0.5],"every_seconds":null,"gates":[],"alpha":0.05}'
    arms = NewArm("challenger", 2), NewArm("champion", 1)
    trial = two.registry.trials.start("rollout", SUPPORT, arms, plan, "RUNNING")
    admin, key = ExperimentsStub(channel), as_admin(two)

    async def listed() -> list[str]:
        reply = await two.client.get("/admin/v1/trials", headers=bearer(two.admin_key))
        assert reply.status_code == 200, reply.text
        shown = (await admin.ListTrials(pb.ListTrialsRequest(), metadata=key)).trials
        assert [one.id for one in shown] == [trial.id]
        return [one["reason"] for one in reply.json()]

    [reason] = await listed()
    assert "cannot be followed" in reason
    await until(lambda: two.registry.trials.get(trial.id).ended_at is not None, 10)
    [reason] = await listed()
    assert "cannot be followed" in reason
    report = await refusal(admin.GetTrial(pb.GetTrialRequest(adapter="acme/support"), metadata=key))
    assert report.code() is grpc.StatusCode.FAILED_PRECONDITION
    reply = await two.client.get(f"{TRIALS}/trial", headers=bearer(two.admin_key))
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "unreadable_plan")
    assert (await by_http(two, f"{TRIALS}/rollouts", ROLLOUT)).status_code == 201
