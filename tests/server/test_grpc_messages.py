"""What a client sends over gRPC reaches the server's nouns whole."""

from dataclasses import fields, replace

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.server import core
from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    Options,
    SamplingParams,
    Tool,
    ToolCall,
)
from loragate.server.errors import InvalidRequest
from loragate.server.rpc.decode import chat_request, completion_request
from loragate.v1 import inference_pb2 as pb
from support.clients import grpc_messages
from support.clients.request_strategies import (
    CHATS,
    COMPLETIONS,
    MESSAGES,
    OPTIONS,
    SAMPLING,
    TOOLS,
)

# Fields that go by another name on the wire; `stream` is said by the method, and what ends with the
# whole answer is HTTP's alone.
RENAMED = {"structured": "response_format", "parameters": "parameters_json"}
NOT_ON_THE_WIRE = {"stream", "ends_with_whole"}


@settings(max_examples=50, deadline=None)
@given(CHATS)
def test_chat_requests_survive_the_wire_whole(request: ChatRequest) -> None:
    sent = pb.ChatRequest.FromString(grpc_messages.chat(request).SerializeToString())
    assert chat_request(sent, stream=request.options.stream) == request


@settings(max_examples=50, deadline=None)
@given(COMPLETIONS)
def test_completion_requests_survive_the_wire_whole(request: CompletionRequest) -> None:
    sent = pb.CompletionRequest.FromString(grpc_messages.completion(request).SerializeToString())
    assert completion_request(sent, stream=request.options.stream) == request


@pytest.mark.parametrize(
    ("noun", "strategy"),
    [
        (SamplingParams, SAMPLING),
        (Options, OPTIONS),
        (ChatRequest, CHATS),
        (CompletionRequest, COMPLETIONS),
        (Message, MESSAGES),
        (Tool, TOOLS),
    ],
)
def test_the_round_trip_varies_every_field(noun: type, strategy: st.SearchStrategy) -> None:
    # A builds() strategy shows its arguments by name; one left out would keep its default.
    missing = {field.name for field in fields(noun) if f"{field.name}=" not in repr(strategy)}
    assert missing <= {"ends_with_whole"}


@pytest.mark.parametrize(
    ("noun", "message"),
    [
        (SamplingParams, pb.SamplingParams),
        (Options, pb.Options),
        (ChatRequest, pb.ChatRequest),
        (CompletionRequest, pb.CompletionRequest),
        (Message, pb.Message),
        (Tool, pb.Tool),
        (ToolCall, pb.ToolCall),
    ],
)
def test_every_field_of_a_noun_has_its_counterpart_on_the_wire(noun: type, message: type) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    wanted = {RENAMED.get(field.name, field.name) for field in fields(noun)} - NOT_ON_THE_WIRE
    assert wanted - set(descriptor.fields_by_name) == set()


def test_every_kind_of_structured_output_has_its_counterpart_on_the_wire() -> None:
    kinds = set(core.StructuredOutput.__annotations__["kind"].__args__)
    on_the_wire = {field.name for field in pb.ResponseFormat.DESCRIPTOR.oneofs[0].fields}
    assert kinds == on_the_wire


@pytest.mark.parametrize("stream", [True, False])
def test_unset_fields_mean_what_the_nouns_default_to(stream: bool) -> None:
    options = Options(stream=stream)
    assert chat_request(pb.ChatRequest(), stream=stream) == ChatRequest("", (), options=options)
    assert completion_request(pb.CompletionRequest(), stream=stream) == CompletionRequest(
        "", (), options=options
    )


def test_zero_is_not_unset() -> None:
    sent = pb.ChatRequest(
        sampling=pb.SamplingParams(temperature=0, max_tokens=0, seed=0, prompt_logprobs=0),
        parallel_tool_calls=False,
    )
    request = chat_request(sent, stream=False)
    assert request.sampling == replace(
        SamplingParams(), temperature=0, max_tokens=0, seed=0, prompt_logprobs=0
    )
    assert not request.parallel_tool_calls


def test_logprobs_alone_report_the_chosen_tokens_only() -> None:
    sent = pb.ChatRequest(sampling=pb.SamplingParams(logprobs=True))
    assert chat_request(sent, stream=False).sampling.logprobs == 0


def test_whole_numbers_of_template_variables_are_integers() -> None:
    sent = pb.ChatRequest()
    sent.template_kwargs.update({"budget": 3, "ratio": 0.5, "nested": {"list": [1.0, True]}})
    variables = chat_request(sent, stream=False).template_kwargs
    assert repr(variables["budget"]) == "3"
    assert repr(variables["nested"]) == "{'list': [1, True]}"
    assert variables["ratio"] == 0.5


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (pb.ChatRequest(tool_choice=pb.ToolChoice()), "tool_choice"),
        (pb.ChatRequest(tool_choice=pb.ToolChoice(mode=99)), "tool_choice"),  # pyright: ignore[reportArgumentType]  # a newer client's word
        (
            pb.ChatRequest(sampling=pb.SamplingParams(response_format=pb.ResponseFormat())),
            "response_format",
        ),
        (pb.ChatRequest(sampling=pb.SamplingParams(top_logprobs=2)), "top_logprobs"),
        (pb.ChatRequest(options=pb.Options(truncation_side=99)), "truncation_side"),  # pyright: ignore[reportArgumentType]  # a newer client's word
    ],
)
def test_chat_requests_that_say_nothing_are_refused_by_field(
    sent: pb.ChatRequest, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat_request(sent, stream=False)
    assert refusal.value.param == param


def test_a_prompt_without_text_and_token_ids_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        completion_request(pb.CompletionRequest(prompts=[pb.Prompt()]), stream=False)
    assert refusal.value.param == "prompts"
