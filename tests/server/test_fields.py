"""The table of fields: what each row says holds over HTTP, over gRPC, and on paper."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from google.protobuf import json_format

from loragate.server.core import ChatRequest, CompletionRequest, Options, SamplingParams
from loragate.server.gateway import fields
from loragate.server.http.requests import ChatBody, CompletionBody
from loragate.server.rpc.decode import chat_request, completion_request
from loragate.v1 import inference_pb2 as pb
from support.clients import field_table
from support.server.small_server import Served

CALLS: tuple[fields.Call, ...] = get_args(fields.Call)
BODIES: Mapping[fields.Call, type[ChatBody | CompletionBody]] = {
    "chat": ChatBody,
    "completion": CompletionBody,
}
PATHS: Mapping[fields.Call, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
LEAST: Mapping[fields.Call, dict[str, Any]] = {
    "chat": {"model": "base", "messages": [{"role": "user", "content": "hi"}]},
    "completion": {"model": "base", "prompt": "hi"},
}
UNSET: Mapping[fields.Call, ChatRequest | CompletionRequest] = {
    "chat": BODIES["chat"].model_validate(LEAST["chat"]).to_core(),
    "completion": BODIES["completion"].model_validate(LEAST["completion"]).to_core(),
}
# What a request may hold for nobody's asking.
NOT_SAID = {"ends_with_whole"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}


@dataclasses.dataclass(frozen=True)
class Sample:
    """A value of a field, what goes with it, and the same in a gRPC message's own JSON."""

    json: object
    message: Mapping[str, object]
    beside: Mapping[str, object] = dataclasses.field(default_factory=dict)


def plain(row: fields.Served) -> Sample:
    """Of a kind's own values, none of them a default."""
    is_true = row.name not in {"skip_special_tokens", "spaces_between_special_tokens"}
    value: object = {
        "number": 0.5,
        "integer": 3,
        "boolean": is_true,
        "string": "some",
        "strings": ["a", "b"],
        "integers": [1, 2],
    }[row.kind]
    return Sample(value, nested(row.place, value))


def nested(place: str, value: object) -> dict[str, object]:
    home, _, name = place.rpartition(".")
    return {home: {name: value}} if home else {name: value}


SAMPLES: Mapping[tuple[str, fields.Call], Sample] = {
    ("messages", "chat"): Sample(
        [{"role": "user", "content": "ho"}], {"messages": [{"role": "user", "content": "ho"}]}
    ),
    ("prompt", "completion"): Sample(["a", [1, 2]][0:1], {"prompts": [{"text": "a"}]}),
    ("max_completion_tokens", "chat"): Sample(7, {"sampling": {"max_tokens": 7}}),
    ("stop", "chat"): Sample(["x"], {"sampling": {"stop": ["x"]}}),
    ("stop", "completion"): Sample("x", {"sampling": {"stop": ["x"]}}),
    ("logit_bias", "chat"): Sample({"5": 1.5}, {"sampling": {"logit_bias": {"5": 1.5}}}),
    ("logit_bias", "completion"): Sample({"5": -1}, {"sampling": {"logit_bias": {"5": -1}}}),
    ("top_logprobs", "chat"): Sample(
        2, {"sampling": {"logprobs": True, "top_logprobs": 2}}, {"logprobs": True}
    ),
    ("logprobs", "completion"): Sample(2, {"sampling": {"logprobs": True, "top_logprobs": 2}}),
    ("response_format", "chat"): Sample(
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        {
            "sampling": {
                "response_format": {
                    "json_schema": '{"type":"object","properties":{"a":{"type":"string"}}}'
                }
            }
        },
    ),
    ("response_format", "completion"): Sample(
        TAG,
        {
            "sampling": {
                "response_format": {
                    "structural_tag": '{"type":"structural_tag","format":{"type":"any_text"}}'
                }
            }
        },
    ),
    ("structured_outputs", "chat"): Sample(
        {"regex": "a+", "disable_any_whitespace": False, "whitespace_pattern": None},
        {"sampling": {"response_format": {"regex": "a+"}}},
    ),
    ("structured_outputs", "completion"): Sample(
        {"choice": ["a"], "disable_additional_properties": True, "json_object": False},
        {"sampling": {"response_format": {"choice": {"texts": ["a"]}}}},
    ),
    ("tools", "chat"): Sample(
        [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        {
            "tools": [
                {
                    "name": "f",
                    "parameters_json": '{"type":"object","properties":{"a":{"type":"string"}}}',
                }
            ]
        },
    ),
    ("tool_choice", "chat"): Sample("required", {"tool_choice": {"mode": "MODE_REQUIRED"}}),
    ("parallel_tool_calls", "chat"): Sample(False, {"parallel_tool_calls": False}),
    ("include_reasoning", "chat"): Sample(False, {"include_reasoning": False}),
    ("add_generation_prompt", "chat"): Sample(False, {"add_generation_prompt": False}),
    ("add_special_tokens", "completion"): Sample(False, {"add_special_tokens": False}),
    ("chat_template_kwargs", "chat"): Sample({"a": 1}, {"template_kwargs": {"a": 1}}),
    ("reasoning_effort", "chat"): Sample(
        "none", {"template_kwargs": {"reasoning_effort": "none", "enable_thinking": False}}
    ),
    ("documents", "chat"): Sample(
        [{"title": "t"}], {"template_kwargs": {"documents": [{"title": "t"}]}}
    ),
    **{
        (name, call): sample
        for call in CALLS
        for name, sample in {
            "stream": Sample(True, {}),
            "stream_options": Sample(
                {"include_usage": True, "continuous_usage_stats": True},
                {"options": {"include_usage": True, "continuous_usage": True}},
            ),
            "truncation_side": Sample(
                "right", {"options": {"truncation_side": "TRUNCATION_SIDE_RIGHT"}}
            ),
        }.items()
    },
}
ROWS = [
    pytest.param(call, row, id=f"{call}-{row.name}")
    for call in CALLS
    for row in fields.served(call)
]


def over_http(call: fields.Call, **said: object) -> ChatRequest | CompletionRequest:
    return BODIES[call].model_validate({**LEAST[call], **said}).to_core()


def over_grpc(
    call: fields.Call, said: Mapping[str, object], stream: bool
) -> ChatRequest | CompletionRequest:
    if call == "chat":
        messages = [{"role": "user", "content": "hi"}]
        wire = json_format.ParseDict(
            {"model": "base", "messages": messages, **said}, pb.ChatRequest()
        )
        return chat_request(wire, stream=stream)
    wire = json_format.ParseDict(
        {"model": "base", "prompts": [{"text": "hi"}], **said}, pb.CompletionRequest()
    )
    return completion_request(wire, stream=stream)


@pytest.mark.parametrize(("call", "row"), ROWS)
def test_a_field_says_the_same_over_either_transport_and_something(
    call: fields.Call, row: fields.Served
) -> None:
    sample = SAMPLES.get((row.name, call)) or plain(row)
    said = over_http(call, **{row.name: sample.json}, **sample.beside)
    assert said != UNSET[call]
    assert over_grpc(call, sample.message, stream=said.options.stream) == said


@pytest.mark.parametrize("call", CALLS)
def test_a_field_that_is_null_was_not_said(call: fields.Call) -> None:
    body = BODIES[call]
    required = {row.name for row in fields.served(call) if row.is_required}
    for name in {*body.model_fields, *fields.refused(call)} - required:
        assert over_http(call, **{name: None}) == UNSET[call], name
    inside = {
        "stream_options": {"include_usage": None, "continuous_usage_stats": None},
        "response_format": {"type": "text", "json_schema": None, "format": None},
    }
    assert over_http(call, **inside) == UNSET[call]


def test_what_is_null_in_a_message_or_a_tool_was_not_said() -> None:
    call = {"id": "1", "type": None, "function": {"name": "f", "arguments": None}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "refusal": None}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "audio": None},
    ]
    function = {"name": "f", "description": None, "parameters": None, "strict": None}
    request = over_http(
        "chat", messages=messages, tools=[{"type": "function", "function": function}]
    )
    assert isinstance(request, ChatRequest)
    assert [message.content for message in request.messages] == ["a", None]
    assert request.messages[1].tool_calls[0].arguments == "{}"
    assert request.tools[0].strict is False


@pytest.mark.parametrize(
    ("call", "row"),
    [each for each in ROWS if getattr(each.values[1], "kind", "") in ("integer", "integers")],
)
def test_a_whole_number_may_be_written_with_a_point(call: fields.Call, row: fields.Served) -> None:
    sample = plain(row).json
    as_float = [float(each) for each in sample] if isinstance(sample, list) else 3.0
    beside = {"logprobs": True} if row.name == "top_logprobs" else {}
    said = over_http(call, **{row.name: as_float}, **beside)
    assert repr(said) == repr(over_http(call, **{row.name: sample}, **beside))


def test_so_may_the_tokens_of_prompts() -> None:
    one = over_http("completion", prompt=[1.0, 2])
    several = over_http("completion", prompt=[[1.0], [2.0, 3]])
    assert isinstance(one, CompletionRequest)
    assert isinstance(several, CompletionRequest)
    assert repr(one.prompts) == "((1, 2),)"
    assert repr(several.prompts) == "((1,), (2, 3))"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "a\nb"),
        ([{"type": "refusal", "refusal": "I cannot."}], "I cannot."),
        ([], ""),
    ],
)
def test_what_openai_answers_in_parts_is_taken_back(content: object, text: str) -> None:
    request = over_http("chat", messages=[{"role": "assistant", "content": content}])
    assert isinstance(request, ChatRequest)
    assert request.messages[0].content == text


def test_so_are_a_refusal_alone_and_arguments_that_are_an_object() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "assistant", "content": None, "refusal": "I cannot."},
        {"role": "assistant", "tool_calls": [call]},
    ]
    request = over_http("chat", messages=messages)
    assert isinstance(request, ChatRequest)
    assert request.messages[0].content == "I cannot."
    assert request.messages[1].tool_calls[0].arguments == '{"a":1}'


def test_the_older_form_of_a_structural_tag_is_taken_too() -> None:
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}],
        "triggers": ["<a>"],
    }
    constraint = over_http("chat", response_format=tag).sampling.structured
    assert constraint is not None
    assert constraint.kind == "structural_tag"
    assert '"triggers":["<a>"]' in constraint.value


@pytest.mark.parametrize("call", CALLS)
def test_a_hint_is_ignored_whatever_it_says(call: fields.Call) -> None:
    for row in fields.ignored(call):
        for value in ("x", 3, {"a": [1]}, ["b"], True):
            assert over_http(call, **{row.name: value}) == UNSET[call]


@pytest.mark.parametrize("call", CALLS)
async def test_what_is_not_served_is_refused_by_name_with_what_to_do(
    served: Served, call: fields.Call
) -> None:
    for row in fields.refused(call).values():
        for harmless in row.harmless:
            assert over_http(call, **{row.name: harmless}) == UNSET[call]
        reply = await served.post(PATHS[call], {**LEAST[call], row.name: {"a": 1}})
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["message"] == f"{row.name} is not served: {row.says}."
        assert (error["param"], error["code"]) == (row.name, "unsupported_parameter")
    assert served.engine.seen == []


def test_as_many_tries_as_answers_are_harmless() -> None:
    assert over_http("completion", best_of=2, n=2) == over_http("completion", n=2)


@pytest.mark.parametrize(
    ("call", "said", "meant"),
    [
        ("chat", {"temprature": 1}, "did you mean temperature?"),
        ("chat", {"max_token": 1}, "did you mean max_tokens?"),
        ("chat", {"maxTokens": 1}, "did you mean max_tokens?"),
        ("completion", {"max_new_tokens": 1}, "did you mean max_tokens?"),
        ("chat", {"stream_options": {"include_usages": True}}, "stream_options.include_usage?"),
        ("chat", {"response_format": {"type": "text", "shema": {}}}, "check its spelling."),
        ("completion", {"messages": None}, "check its spelling."),
        ("chat", {"x" * 90_000: 1}, "is no parameter"),
        ("chat", {"wholly_different": None}, "check its spelling."),
    ],
)
async def test_a_field_that_no_row_names_is_refused_with_the_one_that_was_perhaps_meant(
    served: Served, call: fields.Call, said: dict[str, object], meant: str
) -> None:
    reply = await served.post(PATHS[call], {**LEAST[call], **said})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["code"] == "unknown_parameter"
    assert meant in error["message"] or len(error["message"]) > 900


# ---- that nothing is missing


def test_the_table_has_every_attribute_of_a_request_once_and_no_other() -> None:
    for call in CALLS:
        request = type(UNSET[call])
        attributes = {field.name for field in dataclasses.fields(request)} - {"sampling", "options"}
        attributes |= {f"sampling.{field.name}" for field in dataclasses.fields(SamplingParams)}
        attributes |= {f"options.{field.name}" for field in dataclasses.fields(Options)} - {
            f"options.{name}" for name in (*NOT_SAID, "include_usage", "continuous_usage")
        }
        into = {row.into for row in fields.served(call)} - {"", "options"}
        assert into == attributes


def test_the_table_has_every_field_of_a_message_and_no_other() -> None:
    kinds: dict[fields.Call, Any] = {
        "chat": pb.ChatRequest.DESCRIPTOR,
        "completion": pb.CompletionRequest.DESCRIPTOR,
    }
    places: set[str] = set()
    there: set[str] = set()
    for call, kind in kinds.items():
        for row in fields.served(call):
            places |= {place for place in row.place.split(", ") if place}
        there |= set(kind.fields_by_name) - {"sampling", "options"}
    there |= {f"sampling.{name}" for name in pb.SamplingParams.DESCRIPTOR.fields_by_name}
    there |= {f"options.{name}" for name in pb.Options.DESCRIPTOR.fields_by_name}
    assert places == there


def test_a_field_has_one_row_of_a_call() -> None:
    for call in CALLS:
        names = [row.name for row in (*fields.served(call), *fields.ignored(call))]
        names += fields.refused(call)
        assert len(names) == len(set(names))


def test_the_documentation_has_the_table_as_it_is() -> None:
    page = field_table.PAGE.read_text(encoding="utf-8")
    written = page.partition(field_table.BEGIN)[2].partition(field_table.END)[0]
    assert written == field_table.table(), "run python -m support.clients.field_table in tests/"
