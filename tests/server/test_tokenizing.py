"""`/tokenize` and `/detokenize`, and the same over gRPC: what a prompt costs before it is sent."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import grpc
import pytest
import pytest_asyncio

from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.server.small_server import Served, bearer, on_a_socket

HELLO = {"role": "user", "content": "hello"}


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(replace(TINY_MODEL, max_model_len=100_000))


@pytest_asyncio.fixture
async def stub(served: Served) -> AsyncIterator[InferenceStub]:
    async with on_a_socket(served), served.channel() as channel:
        yield InferenceStub(channel)


def metadata(served: Served, tenant: str = "acme") -> tuple[tuple[str, str], ...]:
    return tuple(bearer(served.keys[tenant]).items())


def chat_message() -> pb.ChatRequest:
    message = pb.Message(role="user", content="hello")
    return pb.ChatRequest(model="support", messages=[message])


async def test_the_ids_of_messages_are_those_that_a_chat_is_answered_by(served: Served) -> None:
    asked = {"model": "support", "messages": [HELLO]}
    tokens = (await served.post("/tokenize", asked)).json()
    answered = (await served.chat("hello", return_token_ids=True)).json()
    assert tokens["tokens"] == answered["prompt_token_ids"]
    assert tokens["count"] == answered["usage"]["prompt_tokens"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == served.engine.model.max_model_len
    assert tokens["token_strs"] is None


async def test_both_transports_say_the_same(served: Served, stub: InferenceStub) -> None:
    asked = {"model": "support", "messages": [HELLO], "return_token_strs": True}
    over_http = (await served.post("/tokenize", asked)).json()
    request = pb.TokenizeRequest(chat=chat_message(), return_token_strs=True)
    over_grpc = await stub.Tokenize(request, metadata=metadata(served))
    assert over_http == {
        "count": over_grpc.count,
        "max_model_len": over_grpc.max_model_len,
        "tokens": list(over_grpc.tokens),
        "token_strs": list(over_grpc.token_strs),
    }
    assert len(over_http["token_strs"]) == over_http["count"]


@pytest.mark.parametrize("text", ["hello", "déjà vu, " * 2000])
async def test_a_text_comes_back_from_its_ids(
    served: Served, stub: InferenceStub, text: str
) -> None:
    reply = await served.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    ids = reply.json()["tokens"]
    assert (await served.post("/detokenize", {"tokens": ids})).json() == {"prompt": text}
    asked = pb.DetokenizeRequest(model="base", tokens=ids)
    assert (await stub.Detokenize(asked, metadata=metadata(served))).prompt == text


async def test_no_ids_are_no_text(served: Served) -> None:
    assert (await served.post("/detokenize", {"tokens": []})).json() == {"prompt": ""}


async def test_a_tenants_own_path_serves_its_key_alone(served: Served) -> None:
    body = {"prompt": "hello"}
    assert (await served.post("/t/acme/tokenize", body)).status_code == 200
    assert (await served.post("/t/acme/tokenize", body, key="globex")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "hello", "messages": [HELLO]}, "prompt"),
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"prompt": ""}, "prompt"),
        ("/tokenize", {"prompt": "hello", "temprature": 1}, "temprature"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ("/detokenize", {"tokens": [1, 10**9]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["1"]}, "tokens[0]"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_name(
    served: Served, path: str, body: Mapping[str, object], param: str | None
) -> None:
    reply = await served.post(path, body)
    assert reply.status_code == 400, reply.text
    if param is not None:
        assert reply.json()["error"]["param"] == param


async def test_another_tenants_adapter_is_not_there(served: Served, stub: InferenceStub) -> None:
    for path, body in (("/tokenize", {"prompt": "hello"}), ("/detokenize", {"tokens": [1]})):
        reply = await served.post(path, {"model": "support", **body}, key="globex")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.Tokenize(
            pb.TokenizeRequest(chat=chat_message()), metadata=metadata(served, "globex")
        )
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_several_prompts_and_none_are_refused_over_grpc(
    served: Served, stub: InferenceStub
) -> None:
    prompts = [pb.Prompt(text="one"), pb.Prompt(text="two")]
    several = pb.CompletionRequest(model="base", prompts=prompts)
    for request in (pb.TokenizeRequest(completion=several), pb.TokenizeRequest()):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Tokenize(request, metadata=metadata(served))
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_strangers_are_not_answered(served: Served) -> None:
    assert (await served.client.post("/tokenize", json={"prompt": "hello"})).status_code == 401
