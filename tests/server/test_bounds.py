"""What one request may hold: too much of anything is refused by its name, over both transports."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import grpc
import pytest
import pytest_asyncio

from loragate.server.config import LimitsConfig, ServerConfig
from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolCall,
)
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients import grpc_messages, http_bodies
from support.clients.grpc_messages import refusal
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.server.small_server import Served, ServeWith, bearer, on_a_socket

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = Message("user", "hi")
BASE = ChatRequest("base", (HI,))
TEXT = CompletionRequest("base", ("hi",))
TOOL = Tool("f", parameters='{"a": 1}')
CALL = ToolCall("1", "f", "{}")
WIDE = ToolCall("1", "f", '{"a":[' + "1," * 140_000 + "1]}")


def chat(**sampling: object) -> ChatRequest:
    return replace(BASE, sampling=replace(SamplingParams(), **sampling))


# The request, and the field at fault in the words of HTTP and of gRPC.
TOO_MANY: list[tuple[ChatRequest | CompletionRequest, str, str]] = [
    (replace(BASE, messages=(HI,) * 2049), "messages", "messages"),
    (replace(BASE, tools=(TOOL,) * 129), "tools", "tools"),
    (
        replace(BASE, messages=(HI, Message("assistant", "", tool_calls=(CALL,) * 129))),
        "messages[1].tool_calls",
        "messages[1].tool_calls",
    ),
    (replace(BASE, model="m" * 257), "model", "model"),
    (replace(TEXT, prompts=("a",) * 2049), "prompt", "prompts"),
    (chat(stop=("a",) * 65), "stop", "stop"),
    (chat(stop=("a" * 20_000,)), "stop", "stop"),
    (chat(bad_words=("a",) * 513), "bad_words", "bad_words"),
    (chat(bad_words=("a" * 20_000,)), "bad_words", "bad_words"),
    (chat(stop_token_ids=(1,) * 1025), "stop_token_ids", "stop_token_ids"),
    (chat(logprob_token_ids=(1,) * 129), "logprob_token_ids", "logprob_token_ids"),
    (chat(logit_bias=dict.fromkeys(range(4097), 1.0)), "logit_bias", "logit_bias"),
    (
        chat(structured=StructuredOutput("choice", choices=("a",) * 8193)),
        "structured_outputs.choice",
        "response_format",
    ),
    (
        replace(BASE, messages=(Message("assistant", "", tool_calls=(WIDE,)),)),
        "messages[0].tool_calls",
        "messages[0].tool_calls",
    ),
    (
        replace(TEXT, prompts=((1,) * 200,) * 40, sampling=SamplingParams(prompt_logprobs=5)),
        "prompt_logprobs",
        "prompt_logprobs",
    ),
    (
        replace(TEXT, sampling=SamplingParams(n=64, max_tokens=1000, logprobs=5)),
        "max_tokens",
        "max_tokens",
    ),
]


@dataclass(frozen=True)
class Refused:
    """The same of both transports: the error's code and the field."""

    code: str
    param: str


@dataclass
class Both:
    """One server, asked over either transport."""

    served: Served
    channel: grpc.aio.Channel

    async def over_http(self, request: ChatRequest | CompletionRequest) -> Refused:
        is_chat = isinstance(request, ChatRequest)
        body = http_bodies.chat_body(request) if is_chat else http_bodies.completion_body(request)
        reply = await self.served.post(CHAT if is_chat else COMPLETIONS, body)
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert len(error["message"]) < 400
        return Refused(error["code"], error["param"])

    async def over_grpc(self, request: ChatRequest | CompletionRequest) -> Refused:
        metadata = (("authorization", f"Bearer {self.served.keys['acme']}"),)
        stub = InferenceStub(self.channel)
        if isinstance(request, ChatRequest):
            failure = await refusal(stub.Chat(grpc_messages.chat(request), metadata=metadata))
        else:
            failure = await refusal(
                stub.Complete(grpc_messages.completion(request), metadata=metadata)
            )
        assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT, failure.details()
        trailers = dict(failure.trailing_metadata() or ())
        return Refused(str(trailers["x-error-code"]), str(trailers["x-error-param"]))


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(replace(TINY_MODEL, max_model_len=4096))


@pytest_asyncio.fixture
async def both(serve_with: ServeWith) -> AsyncIterator[Both]:
    config = ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0")
    limits = LimitsConfig(max_prompt_logprobs=40_000)
    async with (
        serve_with(server=config, limits=limits) as served,
        on_a_socket(served),
        served.channel() as channel,
    ):
        yield Both(served, channel)


async def test_too_much_of_anything_is_refused_by_its_name_over_both_transports(both: Both) -> None:
    for request, http_param, grpc_param in TOO_MANY:
        assert (await both.over_http(request)).param == http_param
        assert (await both.over_grpc(request)).param == grpc_param
    assert both.served.engine.seen == []
    assert both.served.server.admission.present == 0


async def test_as_much_as_may_be_is_taken(both: Both) -> None:
    served = both.served
    turns = [{"role": "user", "content": ""}] * 64
    body = {
        "model": "base",
        "messages": turns,
        "max_tokens": 1,
        "stop": ["a"] * 64,
        "bad_words": ["a"] * 512,
        "logit_bias": {str(token): 1 for token in range(512)},
        "stop_token_ids": [1] * 1024,
    }
    reply = await served.post(CHAT, body)
    assert reply.status_code == 200, reply.text
    scores = {"model": "base", "prompt": [[1] * 160] * 40, "max_tokens": 1, "prompt_logprobs": 5}
    reply = await served.post(COMPLETIONS, scores)
    assert reply.status_code == 200, reply.text


# ---- what is no JSON in UTF-8, or no number

MEANT = b'{"model":"base","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 200),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-type": "Application/vnd.api+json"}, 200),
        ({"content-type": "application/json", "content-encoding": "identity"}, 200),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "text/json"}, 415),
        ({}, 415),
    ],
)
async def test_a_body_has_to_be_said_to_be_json_in_utf_8_and_not_compressed(
    served: Served, headers: dict[str, str], status: int
) -> None:
    reply = await served.client.post(CHAT, content=MEANT, headers={**served.auth, **headers})
    assert reply.status_code == status, reply.text
    if status == 415:
        assert reply.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("token", ["1_0", " 7 ", "+7", "07", "-1", "٣", "1e1", ""])
async def test_a_token_s_id_in_logit_bias_is_written_in_plain_digits(
    served: Served, token: str
) -> None:
    reply = await served.chat(max_tokens=1, logit_bias={token: 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "logit_bias"


@pytest.mark.parametrize("value", [True, "1"])
async def test_feedback_is_a_number_and_nothing_that_looks_like_one(
    served: Served, value: object
) -> None:
    said = {"request_id": "mine", "metric": "thumbs", "value": value}
    reply = await served.post("/v1/feedback", said)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "value"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tenants", {"tenant": "new", "limits": {"max_concurrent": "5"}}),
        ("/tenants", {"tenant": "new", "limits": {"max_concurrent": True}}),
        ("/tenants", {"tenant": "new", "limits": {"max_concurrent": 5.0}}),
        ("/tenants/acme/adapters/support/rollouts", {"to": "v2", "every_seconds": "5"}),
        ("/tenants/acme/adapters/support/rollouts", {"to": "v2", "steps": ["1"]}),
        ("/tenants/acme/adapters/support/rollouts", {"to": "v2", "merged": 1}),
    ],
)
async def test_administration_takes_numbers_for_numbers_alone(
    served: Served, path: str, body: object
) -> None:
    headers = bearer(served.admin_key)
    reply = await served.client.post(f"/admin/v1{path}", json=body, headers=headers)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "invalid_type"


@pytest.mark.parametrize(
    "since", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "99999-01-01", "soon"]
)
async def test_a_moment_that_has_no_date_in_utc_is_refused(served: Served, since: str) -> None:
    reply = await served.client.get(
        "/admin/v1/usage", params={"since": since}, headers=bearer(served.admin_key)
    )
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == "since"
