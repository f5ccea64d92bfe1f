import threading

import pytest

from loragate.server.gateway import routing
from loragate.server.gateway.routing import Router
from loragate.v1 import inference_pb2, inference_pb2_grpc
from support.server.small_server import Served


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which lists of models were made."""
    made: list[threading.Thread] = []
    make = Router.models

    def models(self: Router, tenant: str) -> tuple[routing.ModelCard, ...]:
        made.append(threading.current_thread())
        return make(self, tenant)

    monkeypatch.setattr(Router, "models", models)
    return made


async def test_a_long_list_of_models_is_whole_and_is_not_made_on_the_event_loop(
    served: Served, makers: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (await served.client.get("/v1/models", headers=served.auth)).json()
    monkeypatch.setattr(routing, "_MANY_MODELS", 1)

    long = (await served.client.get("/v1/models", headers=served.auth)).json()

    assert long == short
    assert len(long["data"]) >= 3
    async with (
        served.server.listening(),
        served.channel() as channel,
    ):
        answer = await inference_pb2_grpc.InferenceStub(channel).ListModels(
            inference_pb2.ListModelsRequest(),
            metadata=(("authorization", served.auth["authorization"]),),
        )
    assert [model.id for model in answer.models] == [card["id"] for card in long["data"]]
    on_the_loop = [thread is threading.main_thread() for thread in makers]
    assert on_the_loop == [True, False, False]
