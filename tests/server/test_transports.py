"""Whatever one transport carries, the other does too: each field of requests and of answers."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx
import msgspec
import pytest
import pytest_asyncio
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as Wire
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Delta,
    Message,
    Options,
    SamplingParams,
    TokenLogprob,
    Tool,
    ToolCallDelta,
)
from loragate.server.engine.protocol import EngineRequest
from loragate.server.gateway import fields
from loragate.server.http import answers as http_answers
from loragate.server.http.requests import ChatBody, CompletionBody
from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients import grpc_messages, http_bodies
from support.clients.request_strategies import CHATS, COMPLETIONS, TEXT, TOKEN_IDS, TOOLS
from support.engines.echo_engine import TINY_MODEL, EchoEngine, EchoToolParser, EchoTools
from support.server.small_server import Served, bearer, on_a_socket

# ---- requests: that gRPC carries every field is for test_grpc_messages to show

# Other names of what is there, and ways of saying the same.
ALIASES = {"max_completion_tokens", "response_format", "documents", "reasoning_effort"}
JSON_TOOLS = st.builds(
    lambda tool, schema: replace(tool, parameters=msgspec.json.encode(schema).decode()),
    TOOLS,
    st.dictionaries(TEXT, TEXT, min_size=1, max_size=2),
)
SAME_PROMPTS = st.lists(TEXT, max_size=3) | st.lists(TOKEN_IDS, min_size=1, max_size=3)


def without_negative_tokens(params: SamplingParams) -> SamplingParams:
    return replace(params, logit_bias={abs(t): bias for t, bias in params.logit_bias.items()})


@settings(max_examples=50, deadline=None)
@given(CHATS, st.lists(JSON_TOOLS, max_size=2).map(tuple))
def test_chat_requests_survive_http_whole(request: ChatRequest, tools: tuple[Tool, ...]) -> None:
    request = replace(request, tools=tools, sampling=without_negative_tokens(request.sampling))
    assert ChatBody.model_validate(http_bodies.chat_body(request)).to_core() == request


@settings(max_examples=50, deadline=None)
@given(COMPLETIONS, SAME_PROMPTS.map(tuple))
def test_completion_requests_survive_http_whole(
    request: CompletionRequest, prompts: tuple[str | tuple[int, ...], ...]
) -> None:
    request = replace(request, prompts=prompts, sampling=without_negative_tokens(request.sampling))
    assert CompletionBody.model_validate(http_bodies.completion_body(request)).to_core() == request


@pytest.mark.parametrize(
    ("call", "sent"),
    [
        ("chat", http_bodies.chat_body(ChatRequest("", ()))),
        ("completion", http_bodies.completion_body(CompletionRequest("", ()))),
    ],
)
def test_each_field_that_is_served_is_sent_there(
    call: fields.Call, sent: Mapping[str, object]
) -> None:
    assert {row.name for row in fields.served(call)} - ALIASES == set(sent)


# ---- answers


@dataclass
class EloquentEngine(EchoEngine):
    """Says something in every field of its two deltas."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.id.startswith("probe-"):
            async for delta in super().generate(request):
                yield delta
            return
        sampling = request.sampling
        for index in range(sampling.n):
            for step, token in enumerate((65, 66)):
                is_first, is_last = step == 0, step == 1
                yield Delta(
                    index=index,
                    text=f"t{token}",
                    token_ids=(token,),
                    reasoning="hm" if is_first else "",
                    reasoning_tokens=1 if is_first else 0,
                    logprobs=() if sampling.logprobs is None else scored((token,)),
                    prompt_logprobs=(None, *scored(request.prompt_ids[1:]))
                    if is_first and sampling.prompt_logprobs is not None
                    else None,
                    finish_reason="stop" if is_last else None,
                    stop_reason=("t66" if sampling.logprobs is None else 66) if is_last else None,
                    cached_tokens=1 if is_first and index == 0 else 0,
                )

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> EchoTools:
        return CallsTwice(request)


@dataclass
class CallsTwice(EchoTools):
    """Calls the tool with the first delta, and once more with the second."""

    def parser(self) -> EchoToolParser:
        return TwiceParser(self.request.tools[0].name)


@dataclass
class TwiceParser(EchoToolParser):
    calls: int = 0

    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        self.calls += 1
        call_id = f"call-{self.calls}"
        return "", (ToolCallDelta(self.calls - 1, call_id, self.name, delta.text),)


def scored(token_ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    others = (TokenLogprob("x", 1, -2, rank=2),)
    return tuple(
        TokenLogprob(f"t{i}", i, -0.25, (TokenLogprob(f"t{i}", i, -0.25, rank=1), *others), rank=1)
        for i in token_ids
    )


EVERYTHING = SamplingParams(n=2, max_tokens=2, logprobs=2, prompt_logprobs=2)
OPTIONS = Options(return_token_ids=True)
CHAT = ChatRequest("base", (Message("user", "hi"),), EVERYTHING, OPTIONS)
CALLING = replace(CHAT, tools=(Tool("f", parameters='{"a": 1}'),))
COMPLETION = CompletionRequest("base", ("abc", "de"), EVERYTHING, OPTIONS)
REQUESTS = [
    pytest.param(CHAT, id="chat"),
    pytest.param(CALLING, id="calls"),
    pytest.param(COMPLETION, id="completion"),
    pytest.param(replace(COMPLETION, echo=True), id="echo"),
    pytest.param(
        replace(CHAT, options=replace(OPTIONS, return_tokens_as_token_ids=True)), id="tokens-as-ids"
    ),
    pytest.param(replace(COMPLETION, sampling=SamplingParams(max_tokens=2)), id="plain"),
]
Said = dict[str, Any]


@dataclass
class Both:
    """One server, asked over either transport; `heard` is all that was answered."""

    http: httpx.AsyncClient
    grpc: InferenceStub
    key: str

    async def http_answers(self, request: ChatRequest | CompletionRequest) -> list[Said]:
        is_chat = isinstance(request, ChatRequest)
        body = http_bodies.chat_body(request) if is_chat else http_bodies.completion_body(request)
        if not request.options.stream:
            body["stream_options"] = None
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        reply = await self.http.post(path, json=body, headers=bearer(self.key))
        assert reply.status_code == 200, reply.text
        if not request.options.stream:
            return [reply.json()]
        lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        return [json.loads(line) for line in lines[:-1]]

    async def grpc_answers(self, request: ChatRequest | CompletionRequest) -> list[Wire]:
        metadata = (("authorization", f"Bearer {self.key}"),)
        match request:
            case ChatRequest(options=Options(stream=True)):
                call = self.grpc.ChatStream(grpc_messages.chat(request), metadata=metadata)
                return [chunk async for chunk in call]
            case ChatRequest():
                return [await self.grpc.Chat(grpc_messages.chat(request), metadata=metadata)]
            case CompletionRequest(options=Options(stream=True)):
                call = self.grpc.CompleteStream(
                    grpc_messages.completion(request), metadata=metadata
                )
                return [chunk async for chunk in call]
            case CompletionRequest():
                return [
                    await self.grpc.Complete(grpc_messages.completion(request), metadata=metadata)
                ]


@pytest.fixture
def engine() -> EchoEngine:
    return EloquentEngine(replace(TINY_MODEL, max_model_len=4096))


@pytest_asyncio.fixture
async def both(served: Served) -> AsyncIterator[Both]:
    async with (
        on_a_socket(served) as client,
        served.channel() as channel,
    ):
        yield Both(client, InferenceStub(channel), served.keys["acme"])


def streamed(request: ChatRequest | CompletionRequest) -> ChatRequest | CompletionRequest:
    return replace(request, options=replace(request.options, stream=True, include_usage=True))


# What OpenAI's and vLLM's answers have and clients read, of which nothing here has a value.
ALWAYS_NULL = {
    "refusal",
    "annotations",
    "audio",
    "function_call",
    "service_tier",
    "system_fingerprint",
    "kv_transfer_params",
}


@pytest.mark.parametrize("request_", REQUESTS)
async def test_an_answer_is_the_same_over_each_transport_streamed_or_whole(
    both: Both, request_: ChatRequest | CompletionRequest
) -> None:
    tellings = [
        told_by_http(await both.http_answers(request_)),
        told_by_http(await both.http_answers(streamed(request_))),
        told_by_grpc(await both.grpc_answers(request_)),
        told_by_grpc(await both.grpc_answers(streamed(request_))),
    ]
    first = tellings[0]
    assert first["usage"]["cached_tokens"] > 0
    for telling in tellings[1:]:
        assert telling == first


async def test_what_is_compared_above_has_every_field_that_an_answer_can_have(both: Both) -> None:
    http_seen: set[str] = set()
    grpc_seen: set[str] = set()
    for parameters in REQUESTS:
        (request,) = parameters.values
        assert isinstance(request, ChatRequest | CompletionRequest)
        for each in (request, streamed(request)):
            for answer in await both.http_answers(each):
                http_seen |= names_in(answer)
            for message in await both.grpc_answers(each):
                grpc_seen |= fields_in(message)
    structs = [
        struct
        for struct in vars(http_answers).values()
        if isinstance(struct, type)
        and issubclass(struct, msgspec.Struct)
        and struct.__module__ == http_answers.__name__
    ]
    said_by_http = {field.name for struct in structs for field in msgspec.structs.fields(struct)}
    said_by_grpc = {
        field.full_name
        for kind in (pb.ChatResponse, pb.ChatChunk, pb.CompletionResponse, pb.CompletionChunk)
        for field in all_fields(cast(Descriptor, kind.DESCRIPTOR))
    }
    assert said_by_http - http_seen == ALWAYS_NULL
    assert said_by_grpc - grpc_seen == set()


def names_in(value: object) -> set[str]:
    """The names of what is not null."""
    if isinstance(value, dict):
        named = {name for name, inner in value.items() if inner not in (None, [], {})}
        return named.union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


def fields_in(message: Wire) -> set[str]:
    """The full names of what is set, in the messages inside too."""
    names: set[str] = set()
    for field, value in message.ListFields():
        names.add(field.full_name)
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                names |= fields_in(inner)
    return names


def all_fields(kind: Descriptor) -> list[FieldDescriptor]:
    found: dict[str, FieldDescriptor] = {}
    waiting = [kind]
    while waiting:
        for field in waiting.pop().fields:
            if field.full_name not in found:
                found[field.full_name] = field
                if field.message_type is not None:
                    waiting.append(field.message_type)
    return list(found.values())


def told_by_http(answers: Sequence[Said]) -> Said:
    """One answer, in one piece or several, in a form of no transport."""
    told: Said = {"choices": {}, "model": answers[0]["model"]}
    assert {answer["id"] for answer in answers} == {answers[0]["id"]}
    for answer in answers:
        if (usage := answer.get("usage")) is not None:
            details = usage.pop("prompt_tokens_details") | usage.pop("completion_tokens_details")
            told["usage"] = usage | details
        for piece in answer["choices"]:
            choice = told["choices"].setdefault(piece["index"], empty_choice())
            message = piece.get("message") or piece.get("delta") or {}
            choice["role"] = message.get("role") or choice["role"]
            choice["text"] += piece.get("text") or message.get("content") or ""
            choice["reasoning"] += message.get("reasoning_content") or ""
            for position, call in enumerate(message.get("tool_calls") or ()):
                add_call(
                    choice,
                    call.get("index", position),
                    call.get("id", ""),
                    call["function"].get("name", ""),
                    call["function"]["arguments"],
                )
            choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
            choice["stop_reason"] = piece.get("stop_reason", choice["stop_reason"])
            choice["token_ids"] += piece.get("token_ids") or []
            choice["logprobs"] += http_logprobs(piece["logprobs"])
            choice["prompt_ids"] += piece.get("prompt_token_ids") or []
            for scores in (piece.get("prompt_logprobs"), answer.get("prompt_logprobs")):
                if scores and not choice["prompt_logprobs"]:
                    choice["prompt_logprobs"] = [
                        None
                        if each is None
                        else {
                            int(token): (round(of["logprob"], 5), of["rank"])
                            for token, of in each.items()
                        }
                        for each in scores
                    ]
        if ids := answer.get("prompt_token_ids"):
            assert "prompt_ids" not in told
            told["prompt_ids"] = ids
    for choice in told["choices"].values():
        # With `echo`, OpenAI's form says the prompt's log-probabilities there as well.
        echoed = len(choice["logprobs"]) - len(choice["token_ids"])
        assert not choice["logprobs"] or echoed in (0, len(choice["prompt_ids"]))
        choice["logprobs"] = choice["logprobs"][max(echoed, 0) :]
    return with_shared_scores(told)


def http_logprobs(logprobs: Said | None) -> list[object]:
    if logprobs is None:
        return []
    if "content" in logprobs:
        return [
            (
                each["token"],
                each["logprob"],
                {t["token"]: t["logprob"] for t in each["top_logprobs"]},
            )
            for each in logprobs["content"]
        ]
    return [
        (token, logprob, top)
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
    ]


def told_by_grpc(answers: Sequence[Any]) -> Said:
    told: Said = {"choices": {}, "model": answers[0].model}
    assert {answer.id for answer in answers} == {answers[0].id}
    for answer in answers:
        if answer.HasField("usage"):
            names = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
            told["usage"] = {name: getattr(answer.usage, name) for name in names}
            told["usage"]["reasoning_tokens"] = answer.usage.reasoning_tokens
        for piece in answer.choices:
            choice = told["choices"].setdefault(piece.index, empty_choice())
            message = getattr(piece, "message", None) or getattr(piece, "delta", None)
            choice["text"] += piece.text if message is None else message.content
            if message is not None:
                choice["role"] = message.role or choice["role"]
                choice["reasoning"] += message.reasoning
                for position, call in enumerate(message.tool_calls):
                    index = getattr(call, "index", position)
                    add_call(choice, index, call.id, call.name, call.arguments)
            choice["finish_reason"] = piece.finish_reason or choice["finish_reason"]
            if kind := piece.stop_reason.WhichOneof("reason"):
                choice["stop_reason"] = getattr(piece.stop_reason, kind)
            choice["token_ids"] += piece.token_ids
            choice["logprobs"] += [
                (each.token, each.logprob, {top.token: top.logprob for top in each.top_logprobs})
                for each in piece.logprobs
            ]
            choice["prompt_ids"] += getattr(piece, "prompt_token_ids", ())
            for holder in (piece, answer):
                scores = getattr(holder, "prompt_logprobs", ())
                if scores and not choice["prompt_logprobs"]:
                    choice["prompt_logprobs"] = [grpc_prompt_logprob(each) for each in scores]
        if ids := getattr(answer, "prompt_token_ids", ()):
            assert "prompt_ids" not in told
            told["prompt_ids"] = list(ids)
    return with_shared_scores(told)


def grpc_prompt_logprob(scored: pb.PromptLogprob) -> dict[int, tuple[float, int]] | None:
    if not scored.HasField("token"):
        return None
    entries = (scored.token, *scored.token.top_logprobs)
    return {each.token_id: (round(each.logprob, 5), each.rank) for each in entries}


def with_shared_scores(told: Said) -> Said:
    """A chat's choices share one prompt: its scores come with the whole, or with each choice."""
    if "prompt_ids" in told:
        told["prompt_logprobs"] = told["choices"][0]["prompt_logprobs"]
        for choice in told["choices"].values():
            assert choice.pop("prompt_logprobs") in ([], told["prompt_logprobs"])
    return told


def empty_choice() -> Said:
    return {
        "role": None,
        "text": "",
        "reasoning": "",
        "calls": {},
        "finish_reason": None,
        "stop_reason": None,
        "token_ids": [],
        "logprobs": [],
        "prompt_ids": [],
        "prompt_logprobs": [],
    }


def add_call(choice: Said, index: int, call_id: str, name: str, arguments: str) -> None:
    before = choice["calls"].get(index, ("", "", ""))
    choice["calls"][index] = (before[0] + call_id, before[1] + name, before[2] + arguments)
