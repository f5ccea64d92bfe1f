"""What clients send over gRPC, as the server's own nouns. Nothing is checked but the wire's form,
and how many there are of each before anything is made of them.

Whether a value is in range is for the gateway to say, equally for every transport. What an unset
field means is said once, by the defaults of the classes in `core`.
"""

from typing import Literal, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.message import Message as Wire

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
from loragate.server.gateway import bounds
from loragate.server.gateway.bounds import check_characters, check_count
from loragate.v1 import inference_pb2 as pb

T = TypeVar("T")


def chat_request(wire: pb.ChatRequest, *, stream: bool) -> ChatRequest:
    """Raises InvalidRequest where a `oneof` says nothing, an enum a word not known here, or where
    there are too many of anything.
    """
    check_characters("model", [wire.model], bounds.MOST_NAME_CHARACTERS)
    check_count("messages", len(wire.messages), bounds.MOST_MESSAGES)
    check_count("tools", len(wire.tools), bounds.MOST_TOOLS)
    unset = ChatRequest("", ())
    return ChatRequest(
        model=wire.model,
        messages=tuple(_turn(turn, i) for i, turn in enumerate(wire.messages)),
        sampling=_sampling(wire.sampling, unset.sampling),
        options=_options(wire.options, stream),
        tools=tuple(_tool(tool) for tool in wire.tools),
        tool_choice=_tool_choice(wire.tool_choice) if wire.HasField("tool_choice") else None,
        parallel_tool_calls=_or(wire, "parallel_tool_calls", unset.parallel_tool_calls),
        add_generation_prompt=_or(wire, "add_generation_prompt", unset.add_generation_prompt),
        continue_final_message=wire.continue_final_message,
        add_special_tokens=_or(wire, "add_special_tokens", unset.add_special_tokens),
        template_kwargs=_struct(wire.template_kwargs),
        echo=wire.echo,
    )


def completion_request(wire: pb.CompletionRequest, *, stream: bool) -> CompletionRequest:
    """Raises InvalidRequest as `chat_request` does."""
    check_characters("model", [wire.model], bounds.MOST_NAME_CHARACTERS)
    check_count("prompts", len(wire.prompts), bounds.MOST_PROMPTS)
    ids = sum(len(prompt.token_ids.ids) for prompt in wire.prompts)
    check_count("prompts", ids, bounds.MOST_PROMPT_TOKENS)
    unset = CompletionRequest("", ())
    return CompletionRequest(
        model=wire.model,
        prompts=tuple(_prompt(prompt) for prompt in wire.prompts),
        sampling=_sampling(wire.sampling, unset.sampling),
        options=_options(wire.options, stream),
        echo=wire.echo,
        add_special_tokens=_or(wire, "add_special_tokens", unset.add_special_tokens),
    )


def _or(wire: Wire, field: str, default: T) -> T:
    """The value of an `optional` field, or the default where it is unset (zero is not unset)."""
    return getattr(wire, field) if wire.HasField(field) else default


def _turn(wire: pb.Message, position: int) -> Message:
    calls = f"messages[{position}].tool_calls"
    check_count(calls, len(wire.tool_calls), bounds.MOST_TOOL_CALLS)
    return Message(
        role=wire.role,
        content=_or(wire, "content", None),
        name=_or(wire, "name", None),
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in wire.tool_calls),
        tool_call_id=_or(wire, "tool_call_id", None),
    )


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


def _sampling(wire: pb.SamplingParams, unset: SamplingParams) -> SamplingParams:
    for param, count, most in (
        ("stop", len(wire.stop), bounds.MOST_STOPS),
        ("stop_token_ids", len(wire.stop_token_ids), bounds.MOST_STOP_TOKENS),
        ("logit_bias", len(wire.logit_bias), bounds.MOST_LOGIT_BIASES),
        ("allowed_token_ids", len(wire.allowed_token_ids), bounds.MOST_ALLOWED_TOKENS),
        ("bad_words", len(wire.bad_words), bounds.MOST_BAD_WORDS),
        ("logprob_token_ids", len(wire.logprob_token_ids), bounds.MOST_LOGPROB_TOKENS),
        ("response_format", len(wire.response_format.choice.texts), bounds.MOST_CHOICES_OF_TEXT),
    ):
        check_count(param, count, most)
    return SamplingParams(
        n=_or(wire, "n", unset.n),
        max_tokens=_or(wire, "max_tokens", unset.max_tokens),
        min_tokens=wire.min_tokens,
        temperature=_or(wire, "temperature", None),
        top_p=_or(wire, "top_p", None),
        top_k=_or(wire, "top_k", None),
        min_p=_or(wire, "min_p", None),
        presence_penalty=_or(wire, "presence_penalty", None),
        frequency_penalty=_or(wire, "frequency_penalty", None),
        repetition_penalty=_or(wire, "repetition_penalty", None),
        seed=_or(wire, "seed", None),
        stop=tuple(wire.stop),
        stop_token_ids=tuple(wire.stop_token_ids),
        include_stop_str_in_output=wire.include_stop_str_in_output,
        ignore_eos=wire.ignore_eos,
        skip_special_tokens=_or(wire, "skip_special_tokens", unset.skip_special_tokens),
        spaces_between_special_tokens=_or(
            wire, "spaces_between_special_tokens", unset.spaces_between_special_tokens
        ),
        logit_bias=dict(wire.logit_bias),
        allowed_token_ids=tuple(wire.allowed_token_ids),
        bad_words=tuple(wire.bad_words),
        logprobs=_logprobs(wire),
        logprob_token_ids=tuple(wire.logprob_token_ids),
        prompt_logprobs=_or(wire, "prompt_logprobs", None),
        structured=_structured(wire.response_format) if wire.HasField("response_format") else None,
    )


def _logprobs(wire: pb.SamplingParams) -> int | None:
    if wire.HasField("top_logprobs") and not wire.logprobs:
        raise InvalidRequest(
            "'top_logprobs' needs 'logprobs' to be true as well.", param="top_logprobs"
        )
    return wire.top_logprobs if wire.logprobs else None


def _structured(wire: pb.ResponseFormat) -> StructuredOutput:
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


def _options(wire: pb.Options, stream: bool) -> Options:
    return Options(
        stream=stream,
        include_usage=wire.include_usage,
        continuous_usage=wire.continuous_usage,
        user=_or(wire, "user", None),
        cache_salt=wire.cache_salt,
        truncate_prompt_tokens=_or(wire, "truncate_prompt_tokens", None),
        truncation_side=_truncation_side(wire),
        return_token_ids=wire.return_token_ids,
        return_tokens_as_token_ids=wire.return_tokens_as_token_ids,
    )


def _truncation_side(wire: pb.Options) -> Literal["left", "right"]:
    match wire.truncation_side:
        case pb.Options.TRUNCATION_SIDE_UNSPECIFIED:
            return Options().truncation_side
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
