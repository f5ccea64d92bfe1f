"""What a client sends over gRPC reaches the server's nouns whole."""

from dataclasses import fields, replace

import pytest
import wire
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
    StructuredOutput,
    Tool,
    ToolCall,
    ToolChoice,
)
from loragate.server.errors import InvalidRequest
from loragate.server.rpc.decode import chat_request, completion_request
from loragate.v1 import inference_pb2 as pb

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
DOUBLE = st.floats(allow_nan=False)
TOKEN_IDS = st.lists(INT32, max_size=3).map(tuple)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
TOOL_CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | TEXT
    | st.integers(-(2**53), 2**53)
    | DOUBLE.filter(lambda number: not number.is_integer() and abs(number) != float("inf")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
STRUCTURED = st.one_of(
    st.just(StructuredOutput("json_object")),
    st.builds(
        StructuredOutput,
        st.sampled_from(["json_schema", "regex", "grammar", "structural_tag"]),
        TEXT,
    ),
    st.builds(StructuredOutput, st.just("choice"), choices=TEXTS),
)
SAMPLING = st.builds(
    SamplingParams,
    n=INT32,
    max_tokens=st.none() | INT32,
    min_tokens=INT32,
    temperature=st.none() | DOUBLE,
    top_p=st.none() | DOUBLE,
    top_k=st.none() | INT32,
    min_p=st.none() | DOUBLE,
    presence_penalty=st.none() | DOUBLE,
    frequency_penalty=st.none() | DOUBLE,
    repetition_penalty=st.none() | DOUBLE,
    seed=st.none() | INT64,
    stop=TEXTS,
    stop_token_ids=TOKEN_IDS,
    include_stop_str_in_output=st.booleans(),
    ignore_eos=st.booleans(),
    skip_special_tokens=st.booleans(),
    spaces_between_special_tokens=st.booleans(),
    logit_bias=st.dictionaries(INT32, DOUBLE, max_size=2),
    allowed_token_ids=TOKEN_IDS,
    bad_words=TEXTS,
    logprobs=st.none() | INT32,
    logprob_token_ids=TOKEN_IDS,
    prompt_logprobs=st.none() | INT32,
    structured=st.none() | STRUCTURED,
)
OPTIONS = st.builds(
    Options,
    stream=st.booleans(),
    include_usage=st.booleans(),
    continuous_usage=st.booleans(),
    user=st.none() | TEXT,
    cache_salt=TEXT,
    truncate_prompt_tokens=st.none() | INT32,
    truncation_side=st.sampled_from(["left", "right"]),
    return_token_ids=st.booleans(),
    return_tokens_as_token_ids=st.booleans(),
)
MESSAGES = st.builds(
    Message,
    role=TEXT,
    content=st.none() | TEXT,
    name=st.none() | TEXT,
    tool_calls=TOOL_CALLS,
    tool_call_id=st.none() | TEXT,
)
TOOLS = st.builds(
    Tool,
    name=TEXT,
    description=TEXT,
    parameters=TEXT.filter(bool),
    strict=st.booleans(),
)
TOOL_CHOICES = st.one_of(
    st.builds(ToolChoice, st.sampled_from(["auto", "none", "required"])),
    st.builds(ToolChoice, st.just("named"), TEXT),
)
CHATS = st.builds(
    ChatRequest,
    model=TEXT,
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    sampling=SAMPLING,
    options=OPTIONS,
    tools=st.lists(TOOLS, max_size=2).map(tuple),
    tool_choice=st.none() | TOOL_CHOICES,
    parallel_tool_calls=st.booleans(),
    add_generation_prompt=st.booleans(),
    continue_final_message=st.booleans(),
    add_special_tokens=st.booleans(),
    template_kwargs=st.dictionaries(TEXT, JSON_VALUES, max_size=3),
    echo=st.booleans(),
)
COMPLETIONS = st.builds(
    CompletionRequest,
    model=TEXT,
    prompts=st.lists(TEXT | TOKEN_IDS, max_size=3).map(tuple),
    # Unset means 16 there, so "as many as fit" cannot be said, as with OpenAI.
    sampling=SAMPLING.filter(lambda sampling: sampling.max_tokens is not None),
    options=OPTIONS,
    echo=st.booleans(),
    add_special_tokens=st.booleans(),
)

# Fields that go by another name on the wire; `stream` is said by the method.
RENAMED = {"structured": "response_format", "parameters": "parameters_json"}
NOT_ON_THE_WIRE = {"stream"}


@settings(max_examples=50, deadline=None)
@given(CHATS)
def test_chat_requests_survive_the_wire_whole(request: ChatRequest) -> None:
    sent = pb.ChatRequest.FromString(wire.chat(request).SerializeToString())
    assert chat_request(sent, stream=request.options.stream) == request


@settings(max_examples=50, deadline=None)
@given(COMPLETIONS)
def test_completion_requests_survive_the_wire_whole(request: CompletionRequest) -> None:
    sent = pb.CompletionRequest.FromString(wire.completion(request).SerializeToString())
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
    missing = [field.name for field in fields(noun) if f"{field.name}=" not in repr(strategy)]
    assert missing == []


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
