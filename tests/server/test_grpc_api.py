"""`loragate.v1.Inference` on a real server, over the whole gateway and an engine that echoes."""

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.app.build import build
from loragate.server.app.server import Server
from loragate.server.config import Config, RegistryConfig, ServerConfig
from loragate.server.core import Delta, TokenLogprob
from loragate.server.engine.protocol import EngineRequest
from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.clients.grpc_messages import call, refusal
from support.engines.echo_engine import EchoEngine
from support.models.one_layer import write_adapter, write_base
from support.registry.promotions import let_serve
from support.waiting import until

Metadata = tuple[tuple[str, str], ...]
METHODS = list[MethodDescriptor](pb.DESCRIPTOR.services_by_name["Inference"].methods)
SUPPORT = AdapterName("acme", "support")


TEMPLATE = (
    "{# tools are left out #}"  # they would fill the tiny context
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass
class ScoringEngine(EchoEngine):
    """Echoes, and gives log-probabilities to whoever asks."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        asked = request.sampling
        first = True
        async for delta in super().generate(request):
            if asked.logprobs is not None:
                delta = msgspec.structs.replace(delta, logprobs=_scored(delta.token_ids))
            # The scores of a gate's probe are the echo's own: they tell adapter from base.
            if first and asked.prompt_logprobs is not None and not delta.prompt_logprobs:
                scored = (None, *_scored(request.prompt_ids[1:]))
                delta = msgspec.structs.replace(delta, prompt_logprobs=scored)
            first = False
            yield delta


def _scored(token_ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    top = tuple(TokenLogprob(f"t{i}", i, -float(i)) for i in range(1, 4))
    return tuple(TokenLogprob(f"t{i}", i, -0.25, top) for i in token_ids)


@dataclass
class World:
    """A listening server, its engine, and the keys to it."""

    server: Server
    engine: EchoEngine
    channel: grpc.aio.Channel
    address: str
    key: str
    other_key: str

    @property
    def stub(self) -> InferenceStub:
        return InferenceStub(self.channel)

    @property
    def auth(self) -> Metadata:
        return (("authorization", f"Bearer {self.key}"),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return write_base(tmp_path_factory.mktemp("tiny"), TEMPLATE)


@pytest.fixture
def engine() -> EchoEngine:
    return ScoringEngine()


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str, str]:
    """A home with two tenants and an adapter of the first, to be copied; and the tenants' keys."""
    folder = tmp_path_factory.mktemp("furnished")
    home = Home(folder / "home").ensure()
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        keys = registry.tenants.create("acme").key, registry.tenants.create("globex").key
        registry.versions.publish(SUPPORT, write_adapter(folder / "adapter"))
        let_serve(registry, SUPPORT, "champion", 1)
    return home, *keys


@pytest_asyncio.fixture
async def world(
    tmp_path: Path, base: BaseModel, furnished: tuple[Home, str, str], engine: EchoEngine
) -> AsyncIterator[World]:
    origin, key, other_key = furnished
    home = Home(shutil.copytree(origin.root, tmp_path / "home"))
    config = Config(
        server=ServerConfig(max_body_bytes=100_000), registry=RegistryConfig(poll_seconds=0.05)
    )
    async with build(config, home, base, lambda: nullcontext(engine)) as server:
        address = f"127.0.0.1:{await server.grpc.start('127.0.0.1:0')}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield World(server, engine, channel, address, key, other_key)
        await server.grpc.stop(0)


def chat(text: str = "hello", model: str = "support", **sampling: object) -> pb.ChatRequest:
    request = pb.ChatRequest(model=model, messages=[pb.Message(role="user", content=text)])
    json_format.ParseDict(sampling, request.sampling)
    return request


def completion(*texts: str, **sampling: object) -> pb.CompletionRequest:
    request = pb.CompletionRequest(model="base", prompts=[pb.Prompt(text=text) for text in texts])
    json_format.ParseDict(sampling, request.sampling)
    return request


# ------------------------------------------------------------------------------------------ answers


async def test_a_chat_is_answered_and_says_by_which_weights(world: World) -> None:
    metadata = (*world.auth, ("x-request-id", "mine-1"))
    answering = world.stub.Chat(chat(max_tokens=3), metadata=metadata)
    answer = await answering
    assert answer.id == "chatcmpl-mine-1"
    assert answer.model == "support"
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert len(choice.message.content.split()) == 3
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert answer.usage.prompt_tokens == len("<user>hello<assistant>")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    for sent in (await answering.initial_metadata(), await answering.trailing_metadata()):
        said = dict(sent)
        assert said["x-request-id"] == "mine-1"
        assert said["x-loragate-adapter"] == "acme/support@v1"
        assert len(said["x-loragate-digest"]) == 64
    assert list(world.engine.loads) == ["acme/support@v1"]


async def test_a_streamed_chat_says_the_same_as_one_that_is_not(world: World) -> None:
    request = chat(max_tokens=5, n=2)
    whole = await world.stub.Chat(request, metadata=world.auth)
    request.options.include_usage = True
    answering = world.stub.ChatStream(request, metadata=world.auth)
    chunks = [chunk async for chunk in answering]
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    for choice in whole.choices:
        mine = [piece for piece in pieces if piece.index == choice.index]
        assert "".join(piece.delta.content for piece in mine) == choice.message.content
        assert [piece.delta.role for piece in mine] == ["assistant"] + [""] * (len(mine) - 1)
        assert [piece.finish_reason for piece in mine if piece.HasField("finish_reason")] == [
            choice.finish_reason
        ]
    assert not chunks[-1].choices
    assert chunks[-1].usage == whole.usage
    assert not any(chunk.HasField("usage") for chunk in chunks[:-1])
    assert dict(await answering.initial_metadata())["x-loragate-adapter"] == "acme/support@v1"
    assert dict(await answering.trailing_metadata())["x-loragate-adapter"] == "acme/support@v1"


async def test_usage_comes_with_each_chunk_where_it_was_asked_for(world: World) -> None:
    request = chat(max_tokens=3)
    request.options.continuous_usage = True
    chunks = [chunk async for chunk in world.stub.ChatStream(request, metadata=world.auth)]
    assert not any(chunk.HasField("usage") for chunk in chunks)
    request.options.include_usage = True
    chunks = [chunk async for chunk in world.stub.ChatStream(request, metadata=world.auth)]
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 3]


@pytest.mark.parametrize("stream", [False, True])
async def test_each_choice_of_a_completion_continues_its_own_prompt(
    world: World, stream: bool
) -> None:
    request = completion("ab", "cde", n=2, max_tokens=2)
    request.options.return_token_ids = True
    if stream:
        pieces = [
            choice
            async for chunk in world.stub.CompleteStream(request, metadata=world.auth)
            for choice in chunk.choices
        ]
    else:
        answer = await world.stub.Complete(request, metadata=world.auth)
        pieces = list(answer.choices)
    ids: dict[int, list[int]] = {}
    prompts: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for piece in pieces:
        ids.setdefault(piece.index, []).extend(piece.token_ids)
        prompts.setdefault(piece.index, []).extend(piece.prompt_token_ids)
        texts[piece.index] = texts.get(piece.index, "") + piece.text
    assert sorted(ids) == [0, 1, 2, 3]
    assert [len(prompts[index]) for index in range(4)] == [2, 2, 3, 3]
    for index in range(4):
        assert ids[index] == prompts[index][-2:]
        assert texts[index] == "".join(f" t{token_id}" for token_id in ids[index])


async def test_a_prompt_of_token_ids_reaches_the_engine_as_it_is(world: World) -> None:
    request = pb.CompletionRequest(
        model="base", prompts=[pb.Prompt(token_ids=pb.TokenIds(ids=[7, 8, 9]))]
    )
    await world.stub.Complete(request, metadata=world.auth)
    assert list(world.engine.seen[0].prompt_ids) == [7, 8, 9]
    assert world.engine.seen[0].adapter is None
    assert world.engine.seen[0].sampling.max_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_puts_the_prompt_first_once(world: World, stream: bool) -> None:
    request = completion("abc", max_tokens=2)
    request.echo = True
    if stream:
        answering = world.stub.CompleteStream(request, metadata=world.auth)
        text = "".join([choice.text async for chunk in answering for choice in chunk.choices])
    else:
        text = (await world.stub.Complete(request, metadata=world.auth)).choices[0].text
    assert text.startswith("abc t")
    assert text.count("abc") == 1


async def test_log_probabilities_have_as_many_alternatives_as_asked(world: World) -> None:
    request = chat(max_tokens=2, logprobs=True, top_logprobs=2, prompt_logprobs=1)
    answer = await world.stub.Chat(request, metadata=world.auth)
    (choice,) = answer.choices
    assert [len(entry.top_logprobs) for entry in choice.logprobs] == [2, 2]
    assert choice.logprobs[0].logprob == -0.25
    assert choice.logprobs[0].token == f"t{choice.logprobs[0].token_id}"
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens
    assert not answer.prompt_logprobs[0].HasField("token")
    assert [len(each.token.top_logprobs) for each in answer.prompt_logprobs[1:3]] == [1, 1]


async def test_tokens_of_log_probabilities_can_be_written_as_ids(world: World) -> None:
    request = chat(max_tokens=1, logprobs=True, top_logprobs=1)
    request.options.return_tokens_as_token_ids = True
    answer = await world.stub.Chat(request, metadata=world.auth)
    entry = answer.choices[0].logprobs[0]
    assert entry.token == f"token_id:{entry.token_id}"
    assert entry.top_logprobs[0].token == "token_id:1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_is_told_apart_from_text(world: World, stream: bool) -> None:
    request = chat(max_tokens=3)
    request.tools.add(name="look_up", parameters_json='{"type": "object"}')
    if stream:
        answering = world.stub.ChatStream(request, metadata=world.auth)
        deltas = [choice.delta async for chunk in answering for choice in chunk.choices]
        calls = [piece for delta in deltas for piece in delta.tool_calls]
        assert (calls[0].id, calls[0].name) == ("call-1", "look_up")
        assert not any(piece.HasField("name") for piece in calls[1:])
        arguments = "".join(piece.arguments for piece in calls)
        assert not any(delta.HasField("content") for delta in deltas)
    else:
        answer = await world.stub.Chat(request, metadata=world.auth)
        message = answer.choices[0].message
        assert not message.HasField("content")
        arguments = message.tool_calls[0].arguments
        assert message.tool_calls[0].name == "look_up"
    assert len(arguments.split()) == 3


async def test_models_are_those_of_the_callers_tenant(world: World) -> None:
    mine = await world.stub.ListModels(pb.ListModelsRequest(), metadata=world.auth)
    ids = {model.id for model in mine.models}
    assert {"tiny", "support", "support@v1"} <= ids
    others = (("x-api-key", world.other_key),)
    theirs = await world.stub.ListModels(pb.ListModelsRequest(), metadata=others)
    assert "support" not in {model.id for model in theirs.models}

    one = await world.stub.GetModel(pb.GetModelRequest(model="support"), metadata=world.auth)
    assert (one.model.adapter, one.model.parent) == ("acme/support@v1", "tiny")
    answering = world.stub.GetModel(pb.GetModelRequest(model="support"), metadata=others)
    assert (await refusal(answering)).code() is grpc.StatusCode.NOT_FOUND


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("request_", "code", "error"),
    [
        (pb.ChatRequest(model="support"), "INVALID_ARGUMENT", "invalid_value"),
        (chat(model="nothing"), "NOT_FOUND", "model_not_found"),
        (chat(temperature=-1), "INVALID_ARGUMENT", "invalid_value"),
        (chat(top_logprobs=1), "INVALID_ARGUMENT", "invalid_value"),
        (chat("long " * 200), "INVALID_ARGUMENT", "context_length_exceeded"),
    ],
    ids=["no messages", "no model", "bad value", "contradiction", "too long"],
)
async def test_a_bad_request_is_refused_before_anything_is_sent(
    world: World, stream: bool, request_: pb.ChatRequest, code: str, error: str
) -> None:
    method = world.stub.ChatStream if stream else world.stub.Chat
    failure = await refusal(method(request_, metadata=world.auth))
    assert failure.code().name == code
    assert dict(failure.trailing_metadata())["x-error-code"] == error
    assert world.engine.seen == []


async def test_another_tenants_adapter_is_not_found_like_one_that_does_not_exist(
    world: World,
) -> None:
    others = (("x-api-key", world.other_key),)
    theirs = await refusal(world.stub.Chat(chat(), metadata=others))
    none = await refusal(world.stub.Chat(chat(model="supporx"), metadata=others))
    assert theirs.code() is none.code() is grpc.StatusCode.NOT_FOUND
    assert str(theirs.details()).replace("support", "supporx") == none.details()


async def test_another_tenants_endpoint_is_not_found(world: World) -> None:
    mine = (*world.auth, ("x-loragate-tenant", "acme"))
    await world.stub.ListModels(pb.ListModelsRequest(), metadata=mine)
    theirs = (*world.auth, ("x-loragate-tenant", "globex"))
    answering = world.stub.ListModels(pb.ListModelsRequest(), metadata=theirs)
    assert (await refusal(answering)).code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_no_method_answers_without_a_key(world: World, method: MethodDescriptor) -> None:
    for metadata in ((), (("x-api-key", "lg-wrong"),)):
        failure = await refusal(call(world.channel, method, metadata=metadata))
        assert failure.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_bytes_that_are_no_message_are_the_clients_fault(
    world: World, method: MethodDescriptor
) -> None:
    failure = await refusal(call(world.channel, method, b"\xff\xff", world.auth))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_limit_is_refused(world: World) -> None:
    failure = await refusal(world.stub.Chat(chat("x" * 100_001), metadata=world.auth))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --------------------------------------------------------------------------------- ends before time


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_cancels_frees_its_request(world: World, stream: bool) -> None:
    world.engine.pace_seconds = 0.05
    method = world.stub.ChatStream if stream else world.stub.Chat
    answering = method(chat("a" * 200), metadata=world.auth)
    waiting = asyncio.ensure_future(answering.read() if stream else answering)
    await until(lambda: bool(world.engine.running))
    answering.cancel()
    await until(lambda: not world.engine.running)
    assert len(world.engine.aborted) == 1
    await until(lambda: world.server.admission.in_flight == 0)
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_request_in_the_engine_too(world: World, stream: bool) -> None:
    world.engine.pace_seconds = 0.05
    method = world.stub.ChatStream if stream else world.stub.Chat
    asked = method(chat("a" * 200), metadata=world.auth, timeout=2)  # of 10 s
    waiting = asyncio.ensure_future(refusal(asked))
    await until(lambda: bool(world.engine.running))  # or the deadline could come before it does
    assert (await waiting).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not world.engine.running)
    assert len(world.engine.aborted) == 1


async def test_a_stream_that_nobody_reads_can_be_cancelled(world: World) -> None:
    request = chat("a" * 200, n=8)
    answering = world.stub.ChatStream(request, metadata=world.auth)
    await answering.read()
    answering.cancel()
    await until(lambda: not world.engine.running)
    await until(lambda: world.server.admission.in_flight == 0)


async def test_stopping_lets_an_answer_under_way_finish(world: World) -> None:
    world.engine.pace_seconds = 0.02
    answer = asyncio.ensure_future(world.stub.Chat(chat(max_tokens=10), metadata=world.auth))
    await until(lambda: bool(world.engine.running))
    await world.server.grpc.stop(5)
    assert (await answer).usage.completion_tokens == 10


# ------------------------------------------------------------------------------ health, reflection


async def test_health_follows_whether_the_server_serves(world: World) -> None:
    check = world.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    states = health_pb2.HealthCheckResponse
    services = ("", "loragate.v1.Inference", "loragate.v1.AdapterRegistry")
    for is_serving in (False, True, False):
        await world.server.grpc.set_serving(is_serving)
        expected = states.SERVING if is_serving else states.NOT_SERVING
        for service in services:
            answer = await check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == expected
    unknown = check(health_pb2.HealthCheckRequest(service="loragate.v1.Nothing"))
    assert (await refusal(unknown)).code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_of_health_hears_that_the_server_stops_serving(world: World) -> None:
    watch = world.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    await world.server.grpc.set_serving(True)
    watching = watch(health_pb2.HealthCheckRequest(service="loragate.v1.Inference"))
    told = aiter(watching)
    assert (await anext(told)).status == health_pb2.HealthCheckResponse.SERVING
    await world.server.grpc.set_serving(False)
    assert (await anext(told)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watching.cancel()


async def test_reflection_alone_is_enough_to_chat(world: World) -> None:
    def chat_without_stubs(address: str) -> dict[str, object]:
        with grpc.insecure_channel(address) as channel:
            known = ProtoReflectionDescriptorDatabase(channel)
            assert "loragate.v1.Inference" in known.get_services()
            pool = descriptor_pool.DescriptorPool(known)
            service = pool.FindServiceByName("loragate.v1.Inference")
            method = service.FindMethodByName("Chat")
            ask = channel.unary_unary(
                f"/{service.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(
                    method.input_type
                ).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(
                    method.output_type
                ).FromString,
            )
            request = json_format.ParseDict(
                {
                    "model": "support",
                    "messages": [{"role": "user", "content": "hello"}],
                    "sampling": {"max_tokens": 2},
                },
                message_factory.GetMessageClass(method.input_type)(),
            )
            return json_format.MessageToDict(
                ask(request, metadata=world.auth), preserving_proto_field_name=True
            )

    answer = await asyncio.to_thread(chat_without_stubs, world.address)
    assert answer["model"] == "support"


async def test_a_second_server_on_the_same_address_is_refused(world: World) -> None:
    with pytest.raises(RuntimeError):
        grpc.aio.server().add_insecure_port(world.address)
