"""What is told, and to whom, while the registry's database cannot be reached."""

import grpc
import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.registry.observations import ObservationLedger
from loragate.adapters.registry.tenants import Tenancy
from loragate.v1 import inference_pb2, inference_pb2_grpc, registry_pb2, registry_pb2_grpc
from support.server.small_server import Served, bearer

CAUSE = "the registry's database postgresql://loragate@db-7.internal/x did not answer"


@pytest.fixture
def unreachable(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    def fail(*_: object) -> None:
        raise StoreError(CAUSE)

    monkeypatch.setattr(ObservationLedger, "add_feedback", fail)
    monkeypatch.setattr(Tenancy, "list", fail)
    return served


async def test_over_http_a_tenant_does_not_learn_the_databases_host_and_the_operator_does(
    unreachable: Served, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"request_id": "r", "metric": "rating", "value": 5}
    reply = await unreachable.post("/v1/feedback", said)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert "db-7" not in reply.text
    [logged] = [each for each in caplog.records if "db-7" in each.getMessage()]
    assert getattr(logged, "request_id", None) == reply.headers["x-request-id"]

    client, path = unreachable.client, "/admin/v1/tenants"
    admin = await client.get(path, headers=bearer(unreachable.admin_key))
    assert admin.json()["error"]["message"] == CAUSE
    stranger = await client.get(path, headers=bearer("lg-wrong"))
    assert stranger.status_code == 401


async def test_over_grpc_a_tenant_does_not_learn_the_databases_host_and_the_operator_does(
    unreachable: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        unreachable.server.listening(),
        unreachable.channel() as channel,
    ):
        tenant = inference_pb2_grpc.InferenceStub(channel)
        said = inference_pb2.FeedbackRequest(request_id="r", metric="rating", value=5)
        key = (("authorization", f"Bearer {unreachable.keys['acme']}"),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await tenant.Feedback(said, metadata=key)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "db-7" not in str(refused.value)
        assert "db-7" in caplog.text

        admin = registry_pb2_grpc.AdapterRegistryStub(channel)
        key = (("authorization", f"Bearer {unreachable.admin_key}"),)
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await admin.ListTenants(registry_pb2.ListTenantsRequest(), metadata=key)
        assert told.value.details() == CAUSE
