"""What clients send over gRPC, as the server's own nouns. Nothing is checked but the wire's form,
and how many there are of each before anything is made of them.

Which field becomes what, `gateway.fields` says; here is how messages write what is no plain value.
Whether a value is in range is for the gateway to say, equally for every transport. What an unset
field means is said once, by the defaults of the classes in `core`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

from google.protobuf import struct_pb2
from google.protobuf.message import Message as Wire

from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    StructuredOutput,
    Tool,
    ToolCall,
    ToolChoice,
)
from loragate.server.errors import InvalidRequest
from loragate.server.gateway import bounds, fields
from loragate.server.gateway.bounds import check_characters, check_count
from loragate.v1 import inference_pb2 as pb

T = TypeVar("T")
R = TypeVar("R", ChatRequest, CompletionRequest)


def chat_request(wire: pb.ChatRequest, *, stream: bool) -> ChatRequest:
    """Raises InvalidRequest where a `oneof` says nothing, an enum a word not known here, or where
    there are too many of anything.
    """
    return _request(wire, "chat", ChatRequest("", ()), stream)


def completion_request(wire: pb.CompletionRequest, *, stream: bool) -> CompletionRequest:
    """Raises InvalidRequest as `chat_request` does."""
    ids = sum(len(prompt.token_ids.ids) for prompt in wire.prompts)
    check_count("prompts", ids, bounds.MOST_PROMPT_TOKENS)
    return _request(wire, "completion", CompletionRequest("", ()), stream)


def _request(
    wire: pb.ChatRequest | pb.CompletionRequest, call: fields.Call, unset: R, stream: bool
) -> R:
    """The request `unset`, but for what the message says."""
    asked, options = wire.sampling, wire.options
    said: dict[str, dict[str, Any]] = {"": {}, "sampling": {}, "options": {}}
    messages: dict[str, Wire] = {"": wire, "sampling": asked, "options": options}
    for home, field, attribute, most in _FIELDS[call]:
        if _is_set(messages[home], field):
            value = getattr(messages[home], field)
            if most is not None and isinstance(value, str):
                check_characters(field, [value], most)
            elif most is not None:
                check_count(field, len(value), most)
            said[home][attribute] = _CONVERSIONS.get(field, _plain)(value)
    return replace(
        unset,
        sampling=replace(unset.sampling, logprobs=_logprobs(asked), **said["sampling"]),
        options=replace(
            unset.options,
            stream=stream,
            include_usage=options.include_usage,
            continuous_usage=options.continuous_usage,
            **said["options"],
        ),
        **said[""],
    )


def _fields_of(call: fields.Call) -> tuple[tuple[str, str, str, int | None], ...]:
    """Of each field that is read by itself: the message that has it, its name there, the attribute
    that it becomes, and how many entries or characters it may have.
    """
    found: dict[tuple[str, str], tuple[str, str, str, int | None]] = {}
    for row in fields.served(call):
        home, _, field = row.place.rpartition(".")
        if field and row.into not in ("", "options", "sampling.logprobs"):
            attribute = row.into.rpartition(".")[2]
            found[home, field] = (home, field, attribute, row.most)
    return tuple(found.values())


def _is_set(wire: Wire, field: str) -> bool:
    """Of an `optional` field, whether it was sent: zero is not unset."""
    if wire.DESCRIPTOR.fields_by_name[field].has_presence:
        return wire.HasField(field)
    return bool(getattr(wire, field))


def _plain(value: Any) -> object:
    return value if isinstance(value, str | int | float) else tuple(value)


def _or(wire: Wire, field: str, default: T) -> T:
    """The value of an `optional` field, or the default where it is unset (zero is not unset)."""
    return getattr(wire, field) if wire.HasField(field) else default


def _messages(wire: Sequence[pb.Message]) -> tuple[Message, ...]:
    return tuple(_turn(turn, position) for position, turn in enumerate(wire))


def _turn(wire: pb.Message, position: int) -> Message:
    calls = f"messages[{position}].tool_calls"
    check_count(calls, len(wire.tool_calls), bounds.MOST_TOOL_CALLS)
    return Message(
        role=wire.role,
        content=_or(wire, "content", None),
        name=_or(wire, "name", None),
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in wire.tool_calls),
        tool_call_id=_or(wire, "tool_call_id", None),
        reasoning=_or(wire, "reasoning", None),
    )


def _prompts(wire: Sequence[pb.Prompt]) -> tuple[str | tuple[int, ...], ...]:
    return tuple(map(_prompt, wire))


def _prompt(wire: pb.Prompt) -> str | tuple[int, ...]:
    match wire.WhichOneof("prompt"):
        case "text":
            return wire.text
        case "token_ids":
            return tuple(wire.token_ids.ids)
        case _:
            raise InvalidRequest(
                "One of the prompts is empty; set its 'text' or its 'token_ids'.", param="prompts"
            )


def _tools(wire: Sequence[pb.Tool]) -> tuple[Tool, ...]:
    return tuple(map(_tool, wire))


def _tool(wire: pb.Tool) -> Tool:
    return Tool(
        name=wire.name,
        description=wire.description,
        parameters=wire.parameters_json or Tool("").parameters,
        strict=wire.strict,
    )


def _tool_choice(wire: pb.ToolChoice) -> ToolChoice:
    if wire.WhichOneof("choice") == "function_name":
        return ToolChoice("named", wire.function_name)
    match wire.mode:
        case pb.ToolChoice.MODE_AUTO:
            return ToolChoice("auto")
        case pb.ToolChoice.MODE_NONE:
            return ToolChoice("none")
        case pb.ToolChoice.MODE_REQUIRED:
            return ToolChoice("required")
        case _:
            raise InvalidRequest(
                "The tool choice says nothing; set its 'mode' to MODE_AUTO, MODE_NONE or "
                "MODE_REQUIRED, or its 'function_name'.",
                param="tool_choice",
            )


def _logprobs(wire: pb.SamplingParams) -> int | None:
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequest(
            "'top_logprobs' needs 'logprobs' to be true as well.", param="top_logprobs"
        )
    return wire.top_logprobs if wire.logprobs else None


def _structured(wire: pb.ResponseFormat) -> StructuredOutput:
    check_count("response_format", len(wire.choice.texts), bounds.MOST_CHOICES_OF_TEXT)
    match wire.WhichOneof("format"):
        case "json_object":
            return StructuredOutput("json_object")
        case "json_schema":
            return StructuredOutput("json_schema", wire.json_schema)
        case "regex":
            return StructuredOutput("regex", wire.regex)
        case "grammar":
            return StructuredOutput("grammar", wire.grammar)
        case "structural_tag":
            return StructuredOutput("structural_tag", wire.structural_tag)
        case "choice":
            return StructuredOutput("choice", choices=tuple(wire.choice.texts))
        case _:
            raise InvalidRequest(
                "The response format says nothing; set one of its kinds, such as 'json_object'.",
                param="response_format",
            )


def _truncation_side(side: int) -> Literal["left", "right"]:
    match side:
        case pb.Options.TRUNCATION_SIDE_LEFT:
            return "left"
        case pb.Options.TRUNCATION_SIDE_RIGHT:
            return "right"
        case _:
            raise InvalidRequest(
                "'truncation_side' is neither left nor right.", param="truncation_side"
            )


def _struct(wire: struct_pb2.Struct) -> dict[str, object]:
    return {name: _value(value) for name, value in wire.fields.items()}


def _value(wire: struct_pb2.Value) -> object:
    """As JSON would have it. A Struct has doubles only: whole ones were meant as integers."""
    match wire.WhichOneof("kind"):
        case "struct_value":
            return _struct(wire.struct_value)
        case "list_value":
            return [_value(item) for item in wire.list_value.values]
        case "string_value":
            return wire.string_value
        case "bool_value":
            return wire.bool_value
        case "number_value":
            number = wire.number_value
            return int(number) if number.is_integer() else number
        case _:
            return None


_FIELDS = {call: _fields_of(call) for call in get_args(fields.Call)}

# From a field of a message to an attribute; of plain values, repeated ones become tuples.
_CONVERSIONS: Mapping[str, Callable[[Any], object]] = {
    "messages": _messages,
    "prompts": _prompts,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "template_kwargs": _struct,
    "logit_bias": dict,
    "response_format": _structured,
    "truncation_side": _truncation_side,
}
