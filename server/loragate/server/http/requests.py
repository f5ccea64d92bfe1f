"""OpenAI's request bodies as pydantic models, with vLLM's additions, and their way into core types.

Which fields there are, and what comes of each, `gateway.fields` says; here is how JSON writes those
that are no plain values. Types are strict ("8" is no number) and unknown fields are refused by
name: a misspelt parameter must not look as if it had worked.

Every list and mapping has a bound, and a list ends at its first bad item: pydantic would describe
each of a million, which takes minutes and gigabytes.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

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

R = TypeVar("R", ChatRequest, CompletionRequest)
_MOST_FIELDS = 128  # of an object of which each may have to be likened to others
# What OpenAI answers and its clients send back, and how the Responses API calls the same.
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

AnyObject = dict[str, object]  # of decoded JSON, so nothing in it needs to be looked at again


def _whole(value: object) -> object:
    """What many languages write of a whole number: 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _wholes(value: object) -> object:
    return list(map(_whole, value)) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Body(BaseModel):
    """A whole body. What is null was not said; a field that is not known is refused by its name,
    with the one that was perhaps meant.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    refused: ClassVar[Mapping[str, fields.Refused]] = {}

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_known(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        if len(value) > _MOST_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "Input should have at most {most} fields, not {count}",
                {"most": _MOST_FIELDS, "count": len(value)},
            )
        known = {field.alias or name for name, field in cls.model_fields.items()}
        said: dict[str, object] = {}
        for name, given in value.items():
            if name in known:
                if given is not None:
                    said[name] = given
            elif (row := cls.refused.get(name)) is None:
                meant = fields.spelled_like(name, known)
                raise PydanticCustomError(
                    "unknown_parameter", "unknown", {"name": name, "meant": meant}
                )
            elif not row.passes(given, value):
                raise PydanticCustomError(
                    "unsupported_parameter", "not served", {"name": name, "says": row.says}
                )
        return said


class _Part(BaseModel):
    """What clients echo back of earlier answers has fields of no use here: they are ignored, and
    so is what is null.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        if not isinstance(value, dict) or None not in value.values():
            return value
        return {name: given for name, given in value.items() if given is not None}


class TextPart(_Part):
    """A piece of a message's content. Only text is served; the rest is refused by its type."""

    type: str
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[TextPart], Field(max_length=bounds.MOST_CONTENT_PARTS, fail_fast=True)]


class FunctionCallBody(_Part):
    name: str
    arguments: str | AnyObject = "{}"


class ToolCallBody(_Part):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCallBody


ToolCalls = Annotated[list[ToolCallBody], Field(max_length=bounds.MOST_TOOL_CALLS, fail_fast=True)]


class MessageBody(_Part):
    role: str
    content: str | Parts | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: object = None  # a text is vLLM's newer name for the same
    name: str | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: str | None = None


Messages = Annotated[list[MessageBody], Field(max_length=bounds.MOST_MESSAGES, fail_fast=True)]


class FunctionBody(_Part):
    name: str
    description: str | None = None
    parameters: AnyObject | None = None
    strict: bool | None = None


class ToolBody(_Part):
    type: Literal["function"]
    function: FunctionBody


Tools = Annotated[list[ToolBody], Field(max_length=bounds.MOST_TOOLS, fail_fast=True)]
Documents = Annotated[list[AnyObject], Field(max_length=bounds.MOST_MESSAGES, fail_fast=True)]
Modalities = Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)]


class NamedFunctionBody(_Part):
    name: str


class NamedToolChoiceBody(_Part):
    type: Literal["function"]
    function: NamedFunctionBody


Alternatives = Annotated[list[str], Field(max_length=bounds.MOST_CHOICES_OF_TEXT, fail_fast=True)]
Structures = Annotated[list[AnyObject], Field(max_length=bounds.MOST_TOOLS, fail_fast=True)]


class JsonSchemaBody(_Part):
    name: str | None = None
    description: str | None = None
    schema_: AnyObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(Body):
    """Of a structural tag, vLLM's newer form has a `format`, the older one the other two."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaBody | None = None
    format: AnyObject | None = None
    structures: Structures | None = None
    triggers: Alternatives | None = None


class StructuredOutputsBody(Body):
    """vLLM's own constraints; exactly one. The rest is taken and not looked at, as vLLM does it
    with the grammars that serve here.
    """

    json_: AnyObject | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Alternatives | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool | None = Field(default=None, description="Ignored.")
    disable_additional_properties: bool | None = Field(default=None, description="Ignored.")
    whitespace_pattern: str | None = Field(default=None, description="Ignored.")


class StreamOptionsBody(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Stops = Annotated[list[str], Field(max_length=bounds.MOST_STOPS, fail_fast=True)]
StopTokens = Annotated[
    list[int],
    Field(max_length=bounds.MOST_STOP_TOKENS, fail_fast=True),
    BeforeValidator(_wholes),
]
LogitBias = Annotated[dict[str, float], Field(max_length=bounds.MOST_LOGIT_BIASES)]
Texts = Annotated[list[str], Field(max_length=bounds.MOST_PROMPTS, fail_fast=True)]
TokenIds = Annotated[
    list[int],
    Field(max_length=bounds.MOST_PROMPT_TOKENS, fail_fast=True),
    BeforeValidator(_wholes),
]
Prompts = Annotated[list[TokenIds], Field(max_length=bounds.MOST_PROMPTS, fail_fast=True)]

# Of the fields whose values are no plain ones.
_TYPES: Mapping[str, object] = {
    "messages": Messages,
    "prompt": str | Texts | TokenIds | Prompts,
    "stop": str | Stops,
    "logit_bias": LogitBias,
    "response_format": ResponseFormatBody,
    "structured_outputs": StructuredOutputsBody,
    "tools": Tools,
    "tool_choice": Literal["none", "auto", "required"] | NamedToolChoiceBody,
    "chat_template_kwargs": AnyObject,
    "documents": Documents,
    "reasoning_effort": Effort,
    "truncation_side": Literal["left", "right"],
    "stream_options": StreamOptionsBody,
}


def _type_of(row: fields.Served) -> object:
    match row.kind:
        case "number":
            return float
        case "integer":
            return Whole
        case "boolean":
            return bool
        case "string":
            return Annotated[str, Field(max_length=row.most)]
        case "strings":
            return Annotated[list[str], Field(max_length=row.most, fail_fast=True)]
        case "integers":
            bounded = Field(max_length=row.most, fail_fast=True)
            return Annotated[list[int], bounded, BeforeValidator(_wholes)]
        case "other":
            return _TYPES[row.name]


def _body_of(call: fields.Call) -> type[Body]:
    """A body with the fields that the table has for a call."""
    rows: dict[str, Any] = {}
    for row in fields.served(call):
        kind: Any = _type_of(row)
        if row.is_required:
            rows[row.name] = (kind, Field(description=row.says))
        else:
            rows[row.name] = (kind | None, Field(default=None, description=row.says))
    for row in fields.ignored(call):
        rows[row.name] = (object, Field(default=None, description=f"Ignored: {row.says}"))
    body = create_model("Fields", __base__=Body, **rows)
    body.refused = fields.refused(call)
    return body


class ChatBody(_body_of("chat")):
    """`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

    def to_core(self) -> ChatRequest:
        """Raises InvalidRequest for what pydantic cannot see."""
        said = _Said(self, "chat")
        has_scores, alternatives = bool(said.of("logprobs")), said.of("top_logprobs")
        if alternatives and not has_scores:
            raise InvalidRequest("top_logprobs needs logprobs set to true.", param="top_logprobs")
        said.put("sampling.logprobs", (alternatives or 0) if has_scores else None)
        variables = with_effort(said.of("chat_template_kwargs"), said.of("reasoning_effort"))
        if said.of("documents") is not None:
            variables["documents"] = said.of("documents")
        said.put("template_kwargs", variables)
        return said.request(ChatRequest("", ()))


class CompletionBody(_body_of("completion")):
    """`POST /v1/completions` (https://platform.openai.com/docs/api-reference/completions)."""

    def to_core(self) -> CompletionRequest:
        """Raises InvalidRequest for what pydantic cannot see."""
        return _Said(self, "completion").request(CompletionRequest("", ()))


class _Said:
    """What a body says, on its way into a request. What it does not say stays as it is there."""

    def __init__(self, body: Body, call: fields.Call) -> None:
        """Raises InvalidRequest."""
        self._body = body
        self._nouns: dict[str, dict[str, Any]] = {"": {}, "sampling": {}, "options": {}}
        for row in fields.served(call):
            value = self.of(row.name)
            if value is not None and row.into not in ("", "options"):
                convert = _CONVERSIONS.get(row.name, _plain)
                self.put(row.into, convert(value))
        self.put(
            "sampling.structured",
            structured_of(self.of("response_format"), self.of("structured_outputs")),
        )
        options: StreamOptionsBody | None = self.of("stream_options")
        check_stream_options(options, self.of("stream"))
        options = options or StreamOptionsBody()
        self.put("options.include_usage", options.include_usage)
        self.put("options.continuous_usage", options.continuous_usage_stats)

    def of(self, name: str) -> Any:
        """The value of one of the call's fields; None where it was not said."""
        return getattr(self._body, name)

    def put(self, into: str, value: object) -> None:
        home, _, attribute = into.rpartition(".")
        self._nouns[home][attribute] = value

    def request(self, unsaid: R) -> R:
        """The request `unsaid`, but for what was said."""
        sampling = replace(unsaid.sampling, **self._nouns["sampling"])
        options = replace(unsaid.options, **self._nouns["options"])
        return replace(unsaid, sampling=sampling, options=options, **self._nouns[""])


def with_effort(variables: AnyObject | None, effort: str | None) -> AnyObject:
    """A template's variables and those that say how much to think, as vLLM has them: templates know
    the one or the other, or neither. What the client says of them itself goes first.
    """
    of_effort = {"reasoning_effort": effort, "enable_thinking": effort != "none"} if effort else {}
    return {**of_effort, **(variables or {})}


def check_stream_options(options: StreamOptionsBody | None, stream: bool | None) -> None:
    """Raises InvalidRequest where there is to be no stream, though they ask for nothing, as vLLM
    and OpenAI do. Those that ask for something are looked at where all transports' are.
    """
    if options is not None and stream is False:
        raise InvalidRequest(
            "stream_options only make sense with stream set to true.", param="stream_options"
        )


def _prompts(
    prompt: str | list[str] | list[int] | list[list[int]],
) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if prompt and isinstance(prompt[0], int):
        return (tuple(cast(list[int], prompt)),)
    several = cast(list[str] | list[list[int]], prompt)
    return tuple(item if isinstance(item, str) else tuple(item) for item in several)


def _stop(stop: str | list[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def logit_bias_of(bias: dict[str, float]) -> dict[int, float]:
    wrong = [f"'{token_id[:40]}'" for token_id in bias if not _TOKEN_ID.fullmatch(token_id)]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InvalidRequest(
            f"The keys of logit_bias have to be token ids, such as '42', not "
            f"{', '.join(wrong[:8])}{more}.",
            param="logit_bias",
        )
    return {int(token_id): value for token_id, value in bias.items()}


def structured_of(
    response_format: ResponseFormatBody | None, outputs: StructuredOutputsBody | None
) -> StructuredOutput | None:
    constraints: list[StructuredOutput] = []
    if outputs is not None:
        constraints += _vllm_constraints(outputs)
        if not constraints:
            raise InvalidRequest(
                "structured_outputs names no constraint.", param="structured_outputs"
            )
    if response_format is not None and response_format.type == "json_object":
        constraints.append(StructuredOutput("json_object"))
    if response_format is not None and response_format.type == "structural_tag":
        tag = response_format.model_dump(exclude_unset=True)
        constraints.append(StructuredOutput("structural_tag", json_text(tag)))
    if response_format is not None and response_format.type == "json_schema":
        body = response_format.json_schema
        if body is None or body.schema_ is None:
            raise InvalidRequest(
                "response_format of type json_schema needs json_schema.schema.",
                param="response_format.json_schema",
            )
        constraints.append(StructuredOutput("json_schema", json_text(body.schema_)))
    if len(constraints) > 1:
        raise InvalidRequest(
            "Only one constraint on the output is possible: response_format or one kind of "
            "structured_outputs.",
            param="response_format",
        )
    return constraints[0] if constraints else None


def _vllm_constraints(outputs: StructuredOutputsBody) -> list[StructuredOutput]:
    found: list[StructuredOutput] = []
    if outputs.json_ is not None:
        schema = outputs.json_ if isinstance(outputs.json_, str) else json_text(outputs.json_)
        found.append(_constraint("json_schema", "json", schema))
    if outputs.regex is not None:
        found.append(_constraint("regex", "regex", outputs.regex))
    if outputs.grammar is not None:
        found.append(_constraint("grammar", "grammar", outputs.grammar))
    if outputs.structural_tag is not None:
        found.append(_constraint("structural_tag", "structural_tag", outputs.structural_tag))
    if outputs.choice is not None:
        found.append(_constraint("choice", "choice", choices=tuple(outputs.choice)))
    if outputs.json_object:
        found.append(StructuredOutput("json_object"))
    return found


def _constraint(
    kind: Literal["json_schema", "regex", "grammar", "structural_tag", "choice"],
    name: str,
    value: str = "",
    choices: tuple[str, ...] = (),
) -> StructuredOutput:
    return StructuredOutput(kind, value, choices, f"structured_outputs.{name}")


def json_text(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except OverflowError:  # a whole number of more than 64 bits; the rest is quicker without this
        return json.dumps(value)


def _messages(bodies: list[MessageBody]) -> tuple[Message, ...]:
    return tuple(_message(body, position) for position, body in enumerate(bodies))


def _message(body: MessageBody, position: int) -> Message:
    content = _content(body.content, position)
    return Message(
        role=body.role,
        content=body.refusal if content is None else content,
        name=body.name,
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, _arguments(call.function.arguments))
            for call in body.tool_calls or ()
        ),
        tool_call_id=body.tool_call_id,
        reasoning=_reasoning(body),
    )


def _reasoning(body: MessageBody) -> str | None:
    if body.reasoning_content is not None:
        return body.reasoning_content
    return body.reasoning if isinstance(body.reasoning, str) else None


def _arguments(arguments: str | AnyObject) -> str:
    return arguments if isinstance(arguments, str) else json_text(arguments)


def _content(content: str | list[TextPart] | None, position: int) -> str | None:
    if content is None or isinstance(content, str):
        return content
    return "\n".join(_text(part, position) for part in content)  # as vLLM does


def _text(part: TextPart, position: int) -> str:
    if part.type not in _TEXT_PARTS:
        raise InvalidRequest(
            f"This model reads text only, not '{part.type}'.", param=f"messages[{position}].content"
        )
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise InvalidRequest(
            f"A part of type '{part.type}' has no text.", param=f"messages[{position}].content"
        )
    return text


def _tools(bodies: list[ToolBody]) -> tuple[Tool, ...]:
    return tuple(map(_tool, bodies))


def _tool(body: ToolBody) -> Tool:
    function = body.function
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=json_text(function.parameters or {"type": "object", "properties": {}}),
        strict=bool(function.strict),
    )


def _tool_choice(choice: Literal["none", "auto", "required"] | NamedToolChoiceBody) -> ToolChoice:
    if isinstance(choice, NamedToolChoiceBody):
        return ToolChoice("named", choice.function.name)
    return ToolChoice(choice)


# From the value of a body's field to the attribute of a request; of plain values, lists become
# tuples. What several fields say together is put where the body is.
_CONVERSIONS: Mapping[str, Callable[[Any], object]] = {
    "messages": _messages,
    "prompt": _prompts,
    "stop": _stop,
    "logit_bias": logit_bias_of,
    "tools": _tools,
    "tool_choice": _tool_choice,
}
