"""OpenAI's Responses API as a chat request: `POST /v1/responses`, without any state of its own.

What a client sends is the whole conversation, as items; they become the messages of a
`ChatRequest`, so that limits, contracts, tools and records are those of chat completions. What
needs an earlier response, a tool that a provider runs, or more than text is refused with what to
send instead. `null` means that a field was not said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from loragate.server.core import (
    ChatRequest,
    Message,
    Options,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolCall,
    ToolChoice,
)
from loragate.server.errors import InvalidRequest
from loragate.server.gateway import bounds, fields
from loragate.server.http.requests import (
    AnyObject,
    Body,
    Effort,
    LogitBias,
    Stops,
    StopTokens,
    StreamOptionsBody,
    StructuredOutputsBody,
    Whole,
    check_stream_options,
    json_text,
    logit_bias_of,
    structured_of,
    with_effort,
)
from loragate.server.http.responses_objects import Echo

LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"
NOTHING_STORED: Final = "This server keeps no responses"
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})
# What the stages behind this one call the fields of a chat request.
_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
_NAMED = re.compile(r"\b(messages|max_tokens|response_format|logprobs)\b(?:\[\d+\](?:\.\w+)*)?")


class _Known(BaseModel):
    """Clients send earlier answers back with fields of no use here: they are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class PartBody(_Known):
    """A piece of text; anything else is refused by its type."""

    type: str
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[PartBody], Field(max_length=bounds.MOST_CONTENT_PARTS, fail_fast=True)]


class ItemBody(_Known):
    """A message, a function call, its output, or reasoning; `type` says which."""

    type: str | None = None
    role: str | None = None
    content: str | Parts | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Parts | None = None
    summary: Parts | None = None


Items = Annotated[list[ItemBody], Field(max_length=bounds.MOST_MESSAGES, fail_fast=True)]


class FunctionToolBody(_Known):
    """A function in the flat form that this API has; other types are refused."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: AnyObject | None = None
    strict: bool | None = None


FunctionTools = Annotated[
    list[FunctionToolBody], Field(max_length=bounds.MOST_TOOLS, fail_fast=True)
]


class ChosenToolBody(_Known):
    """`function` with a name, or `allowed_tools` with those that may be called."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: FunctionTools | None = None


class TextFormatBody(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: AnyObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextBody(Body):
    format: TextFormatBody | None = None
    verbosity: str | None = Field(default=None, description="Ignored.")


class ReasoningBody(_Known):
    effort: Effort | None = Field(
        default=None, description="The template's variables reasoning_effort and enable_thinking."
    )
    summary: str | None = Field(default=None, description="Ignored: reasoning comes whole.")


# Fields of OpenAI's and of vLLM's, of which only these values ask for nothing.
_REFUSED: Final = (
    fields.Refused("enable_response_messages", "ask /tokenize for token ids", harmless=(False,)),
    fields.Refused("previous_input_messages", "send the whole conversation as input"),
    fields.Refused("context_management", "leave it out, or set truncation to auto"),
    fields.Refused("background_options", "leave it out, and stream a long answer"),
    fields.Refused("moderation", "leave it out"),
    fields.Refused("logprobs", f"ask for {LOGPROBS} by include, and for top_logprobs"),
    fields.Refused("response_format", "use text.format"),
    fields.Refused("reasoning_effort", "use reasoning.effort"),
    fields.Refused("messages", "use input"),
)
_REFUSED_AS_OF_CHATS: Final = ("watermarking", "vllm_xargs", "kv_transfer_params", "extra_body")

Includes = Annotated[list[str], Field(max_length=32, fail_fast=True)]
Metadata = Annotated[dict[str, str], Field(max_length=16)]


class ResponsesBody(Body):
    """`POST /v1/responses` (https://platform.openai.com/docs/api-reference/responses)."""

    model: str = Field(
        max_length=bounds.MOST_NAME_CHARACTERS,
        examples=["support"],
        description="NAME, NAME@alias, NAME@v3, or base.",
    )
    input: str | Items
    instructions: str | None = None
    tools: FunctionTools | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenToolBody | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    max_output_tokens: Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Whole | None = None
    include: Includes | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    user: str | None = None
    # vLLM's additions
    seed: Whole | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | Stops | None = None
    stop_token_ids: StopTokens | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: str | None = None
    chat_template_kwargs: AnyObject | None = None
    include_reasoning: bool | None = None
    logit_bias: LogitBias | None = None
    structured_outputs: StructuredOutputsBody | None = None
    # Accepted, without effect here; the answer says some of them again.
    metadata: Metadata | None = Field(default=None, description="Comes back with the answer.")
    safety_identifier: str | None = Field(default=None, description="Ignored.")
    prompt_cache_key: str | None = Field(default=None, description="Ignored.")
    prompt_cache_retention: str | None = Field(default=None, description="Ignored.")
    prompt_cache_options: object = Field(default=None, description="Ignored.")
    service_tier: str | None = Field(default=None, description="Ignored.")
    request_id: object = Field(default=None, description="Ignored: send the header x-request-id.")
    session_id: object = Field(
        default=None, description="Ignored: send the header x-conversation-id."
    )
    media_io_kwargs: object = Field(default=None, description="Ignored: text alone is served.")
    mm_processor_kwargs: object = Field(default=None, description="Ignored: text alone is served.")
    max_tool_calls: Whole | None = Field(
        default=None, description="Ignored: it counts calls of hosted tools, of which are none."
    )
    # Known, refused where they ask for what is not served.
    store: bool | None = Field(default=None, description="Refused when true: nothing is kept.")
    background: bool | None = Field(default=None, description="Refused when true.")
    previous_response_id: str | None = Field(default=None, description="Refused: nothing is kept.")
    conversation: str | AnyObject | None = Field(
        default=None, description="Refused: nothing is kept."
    )
    prompt: AnyObject | None = Field(default=None, description="Refused: nothing is kept.")
    priority: Whole | None = Field(default=None, description="Refused unless 0.")

    refused: ClassVar[Mapping[str, fields.Refused]] = {
        **{row.name: row for row in _REFUSED},
        **{name: fields.refused("chat")[name] for name in _REFUSED_AS_OF_CHATS},
    }

    def to_core(self) -> tuple[ChatRequest, Echo]:
        """The request, and what its answer says of it. Raises InvalidRequest for what pydantic
        cannot see.
        """
        self._refuse_state()
        check_stream_options(self.stream_options, self.stream)
        tools, choice = self._tools()
        conversation = _Conversation()
        if self.instructions:
            conversation.instruct(self.instructions)
        if isinstance(self.input, str):
            conversation.messages.append(_Draft("user", self.input))
        else:
            for position, item in enumerate(self.input):
                conversation.add(item, f"input[{position}]")
        if not self.input:
            raise InvalidRequest("input is empty; send some text.", param="input")
        request = ChatRequest(
            model=self.model,
            messages=tuple(draft.message() for draft in conversation.messages),
            sampling=self._sampling(),
            options=Options(
                stream=bool(self.stream),
                user=self.user,
                cache_salt=self.cache_salt or "",
                truncate_prompt_tokens=-1 if self.truncation == "auto" else None,
                ends_with_whole=True,
            ),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            include_reasoning=self.include_reasoning is not False,
            template_kwargs=with_effort(
                self.chat_template_kwargs, self.reasoning.effort if self.reasoning else None
            ),
        )
        return request, self._echo()

    def _refuse_state(self) -> None:
        if self.store:
            raise InvalidRequest(
                f"{NOTHING_STORED}: set store to false, or leave it out, and send the whole "
                "conversation as input each time.",
                param="store",
            )
        if self.background:
            raise InvalidRequest(
                f"{NOTHING_STORED}, so none can be fetched later; leave background out, and "
                "stream a long answer.",
                param="background",
            )
        for param, value in (
            ("previous_response_id", self.previous_response_id),
            ("conversation", self.conversation),
        ):
            if value is not None:
                raise InvalidRequest(
                    f"{NOTHING_STORED}, so there is nothing to go on from; leave {param} out, and "
                    "send the whole conversation as input.",
                    param=param,
                )
        if self.prompt is not None:
            raise InvalidRequest(
                "This server keeps no prompts; send the text as instructions and input.",
                param="prompt",
            )
        if self.priority:
            raise InvalidRequest(
                "priority is not served: every tenant has the same; leave it out.",
                param="priority",
            )

    def _sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=self.skip_special_tokens is not False,
            include_stop_str_in_output=bool(self.include_stop_str_in_output),
            logit_bias=logit_bias_of(self.logit_bias or {}),
            logprobs=self._logprobs(),
            structured=self._structured(),
        )

    def _logprobs(self) -> int | None:
        include = self.include or ()
        for name in include:
            if name not in (LOGPROBS, ENCRYPTED_REASONING):
                raise InvalidRequest(
                    f"include has '{name[:80]}', of which answers here have none; leave it out.",
                    param="include",
                )
        if LOGPROBS in include:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InvalidRequest(f"top_logprobs needs '{LOGPROBS}' in include.", param="include")
        return None

    def _structured(self) -> StructuredOutput | None:
        chosen = self.text.format if self.text is not None else None
        if chosen is None or chosen.type == "text":
            return structured_of(None, self.structured_outputs)
        if self.structured_outputs is not None:
            raise InvalidRequest(
                "Only one constraint on the output is possible: text.format or structured_outputs.",
                param="structured_outputs",
            )
        if chosen.type == "json_object":
            return StructuredOutput("json_object", param="text.format")
        if chosen.schema_ is None:
            raise InvalidRequest(
                "text.format of type json_schema needs a schema.", param="text.format.schema"
            )
        return StructuredOutput("json_schema", json_text(chosen.schema_), param="text.format")

    def _tools(self) -> tuple[tuple[Tool, ...], ToolChoice | None]:
        tools = tuple(_tool(body, f"tools[{i}]") for i, body in enumerate(self.tools or ()))
        choice = self.tool_choice
        if isinstance(choice, ChosenToolBody):
            return _chosen(choice, tools)
        if choice is None or (choice == "auto" and not tools):
            return tools, None
        return tools, ToolChoice(choice)

    def _echo(self) -> Echo:
        text = self.text or TextBody()
        of_text = {
            "format": _said(text.format) if text.format is not None else {"type": "text"},
            "verbosity": text.verbosity,
        }
        reasoning = self.reasoning or ReasoningBody()
        choice = self.tool_choice or "auto"
        return Echo(
            model=self.model,
            instructions=_raw(self.instructions),
            tools=_raw([_said(tool) for tool in self.tools or ()]),
            tool_choice=_raw(choice if isinstance(choice, str) else _said(choice)),
            text=_raw(of_text),
            reasoning=_raw({"effort": reasoning.effort, "summary": reasoning.summary}),
            metadata=_raw(self.metadata or {}),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            max_output_tokens=self.max_output_tokens,
            max_tool_calls=self.max_tool_calls,
            temperature=self.temperature,
            top_p=self.top_p,
            top_logprobs=self.top_logprobs or 0,
            truncation=self.truncation or "disabled",
            user=self.user,
            safety_identifier=self.safety_identifier,
            prompt_cache_key=self.prompt_cache_key,
        )


def reworded(error: InvalidRequest) -> InvalidRequest:
    """The same refusal in the words of this API, where a stage behind it has those of chat."""

    def named(match: re.Match[str]) -> str:
        return _NAMES[match[1]]

    param = error.param and _NAMED.sub(named, error.param)
    message = _NAMED.sub(named, str(error))
    return type(error)(
        message, param=param, code=error.code, retry_after_seconds=error.retry_after_seconds
    )


@dataclass(slots=True)
class _Draft:
    """A message to which items that come after it may still be added."""

    role: str
    content: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None
    reasoning: str | None = None

    def think(self, thoughts: Sequence[str]) -> None:
        """Before what it says or calls next."""
        before = [self.reasoning] if self.reasoning else []
        self.reasoning = "\n".join([*before, *thoughts]) or None

    def message(self) -> Message:
        return Message(
            role=self.role,
            content=self.content,
            tool_calls=tuple(self.tool_calls),
            tool_call_id=self.tool_call_id,
            reasoning=self.reasoning,
        )


class _Conversation:
    """Items joined into messages: an assistant's thoughts, its text and the calls after it are one.
    Thoughts that nothing of the assistant's follows are left out.
    """

    def __init__(self) -> None:
        self.messages: list[_Draft] = []
        self._thoughts: list[str] = []  # of the assistant, before its next item
        self._called: set[str] = set()
        self._is_instructed = False

    def instruct(self, text: str) -> None:
        """`instructions`; a system message that comes first is added to them, since most templates
        take one.
        """
        self.messages.append(_Draft("system", text))
        self._is_instructed = True

    def add(self, item: ItemBody, param: str) -> None:
        match item.type:
            case "message" | None if item.role is not None:
                self._add_message(item.role, item, param)
            case "function_call":
                self._add_call(item, param)
            case "function_call_output":
                self._add_output(item, param)
            case "reasoning":
                self._add_reasoning(item, param)
            case "item_reference" | None if item.id is not None:
                raise InvalidRequest(
                    f"{NOTHING_STORED}, so {param} refers to nothing; send the item itself. "
                    "Clients that refer to items do so unless store is false.",
                    param=param,
                )
            case "message" | None:
                raise InvalidRequest(
                    f"{param}.role is missing.",
                    param=f"{param}.role",
                    code="missing_required_parameter",
                )
            case unknown:
                raise InvalidRequest(
                    f"{param} is of type '{unknown[:80]}', which is not served; send messages, "
                    "function_call, function_call_output and reasoning.",
                    param=f"{param}.type",
                )

    def _add_message(self, role: str, item: ItemBody, param: str) -> None:
        if role not in _ROLES:
            raise InvalidRequest(
                f"{param}.role is '{role[:80]}'; it has to be one of {', '.join(sorted(_ROLES))}. "
                "What a function has answered is an item of type function_call_output.",
                param=f"{param}.role",
            )
        content = _text(item.content, f"{param}.content")
        if self._is_instructed and len(self.messages) == 1 and role in ("system", "developer"):
            self.messages[0].content = f"{self.messages[0].content}\n\n{content}"
            return
        self.messages.append(_Draft(role, content))
        if role == "assistant":
            self.messages[-1].think(self._thoughts)
        self._thoughts.clear()

    def _add_reasoning(self, item: ItemBody, param: str) -> None:
        """Whole, or where a client has only that, its summary. What is encrypted was not so here.
        Whether the thoughts of earlier turns are read again, the template decides.
        """
        if item.content:
            thought = _text(item.content, f"{param}.content")
        else:
            thought = _text(item.summary or "", f"{param}.summary")
        if thought:
            self._thoughts.append(thought)

    def _add_call(self, item: ItemBody, param: str) -> None:
        call_id, name = _needed(item.call_id, param, "call_id"), _needed(item.name, param, "name")
        arguments = _needed(item.arguments, param, "arguments")
        if not self.messages or self.messages[-1].role != "assistant":
            self.messages.append(_Draft("assistant"))
        self.messages[-1].think(self._thoughts)
        self._thoughts.clear()
        calls = self.messages[-1].tool_calls
        if len(calls) >= bounds.MOST_TOOL_CALLS:
            raise InvalidRequest(
                f"{param} is one of more than {bounds.MOST_TOOL_CALLS} calls of one turn; send "
                "fewer.",
                param=param,
            )
        self._called.add(call_id)
        calls.append(ToolCall(call_id, name, arguments))

    def _add_output(self, item: ItemBody, param: str) -> None:
        call_id = _needed(item.call_id, param, "call_id")
        if call_id not in self._called:
            raise InvalidRequest(
                f"{param} answers the call '{call_id[:80]}', which no function_call before it "
                "makes; send the whole conversation.",
                param=f"{param}.call_id",
            )
        output = _text(item.output, f"{param}.output")
        self.messages.append(_Draft("tool", output, tool_call_id=call_id))


def _needed(value: str | None, param: str, name: str) -> str:
    if value is None:
        raise InvalidRequest(
            f"{param}.{name} is missing.",
            param=f"{param}.{name}",
            code="missing_required_parameter",
        )
    return value


def _text(content: str | list[PartBody] | None, param: str) -> str:
    if content is None:
        raise InvalidRequest(f"{param} is missing.", param=param, code="missing_required_parameter")
    if isinstance(content, str):
        return content
    # As in a chat's messages.
    return "\n".join(_part_text(part, f"{param}[{i}]") for i, part in enumerate(content))


def _part_text(part: PartBody, param: str) -> str:
    if part.type == "refusal":
        return _needed(part.refusal, param, "refusal")
    if part.type not in _TEXT_PARTS:
        raise InvalidRequest(
            f"This model reads text only, not '{part.type[:80]}'; send input_text.", param=param
        )
    return _needed(part.text, param, "text")


def _tool(body: FunctionToolBody, param: str) -> Tool:
    if body.type != "function":
        raise InvalidRequest(
            f"{param} is of type '{body.type[:80]}', which is not served: this server calls no "
            "tools itself. Send a tool of type function, and run it where the client is.",
            param=f"{param}.type",
        )
    return Tool(
        name=_needed(body.name, param, "name"),
        description=body.description or "",
        parameters=json_text(body.parameters or {"type": "object", "properties": {}}),
        strict=bool(body.strict),
    )


def _chosen(
    choice: ChosenToolBody, tools: Sequence[Tool]
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """The tools that are left to the model, and what it is to do with them."""
    if choice.type == "function":
        return tuple(tools), ToolChoice("named", _needed(choice.name, "tool_choice", "name"))
    if choice.type != "allowed_tools":
        raise InvalidRequest(
            f"tool_choice of type '{choice.type[:80]}' is not served; choose a function, or "
            "allowed_tools of type function.",
            param="tool_choice",
        )
    allowed = {_tool(body, "tool_choice.tools").name for body in choice.tools or ()}
    if unknown := allowed - {tool.name for tool in tools}:
        raise InvalidRequest(
            f"tool_choice names '{min(unknown)[:80]}', which is not among tools.",
            param="tool_choice",
        )
    kept = tuple(tool for tool in tools if tool.name in allowed)
    return kept, ToolChoice(choice.mode or "auto") if kept else None


def _said(body: BaseModel) -> dict[str, object]:
    return body.model_dump(by_alias=True, exclude_unset=True)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json_text(value).encode())
