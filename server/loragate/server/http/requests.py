"""OpenAI's request bodies as pydantic models, with vLLM's additions, and their way into core types.

Types are strict ("8" is no number) and unknown fields are refused by name: a misspelt parameter
must not look as if it had worked. Fields that OpenAI's clients send but that mean nothing here are
accepted and ignored; fields that would silently change the answer are refused with a reason.

Every list and mapping has a bound, and a list ends at its first bad item: pydantic would describe
each of a million, which takes minutes and gigabytes.
"""

import json
import re
from typing import Annotated, Literal, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

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

_MOST_FIELDS = 128  # of an object whose unknown fields are each an error
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

AnyObject = dict[str, object]  # of decoded JSON, so nothing in it needs to be looked at again


class Body(BaseModel):
    """A whole body: a field that is not known is refused by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > _MOST_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "Input should have at most {most} fields, not {count}",
                {"most": _MOST_FIELDS, "count": len(value)},
            )
        return value


class _Part(BaseModel):
    """What clients echo back of earlier answers has fields of no use here: they are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(_Part):
    """A piece of a message's content. Only `text` is served; the rest is refused by its type."""

    type: str
    text: str | None = None


Parts = Annotated[list[TextPart], Field(max_length=bounds.MOST_CONTENT_PARTS, fail_fast=True)]


class FunctionCallBody(_Part):
    name: str
    arguments: str = "{}"


class ToolCallBody(_Part):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCallBody


ToolCalls = Annotated[list[ToolCallBody], Field(max_length=bounds.MOST_TOOL_CALLS, fail_fast=True)]


class MessageBody(_Part):
    role: str
    content: str | Parts | None = None
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


class JsonSchemaBody(_Part):
    name: str | None = None
    description: str | None = None
    schema_: AnyObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


Alternatives = Annotated[list[str], Field(max_length=bounds.MOST_CHOICES_OF_TEXT, fail_fast=True)]


class StructuredOutputsBody(Body):
    """vLLM's own constraints; exactly one."""

    json_: AnyObject | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Alternatives | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None


class StreamOptionsBody(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


Stops = Annotated[list[str], Field(max_length=bounds.MOST_STOPS, fail_fast=True)]
BadWords = Annotated[list[str], Field(max_length=bounds.MOST_BAD_WORDS, fail_fast=True)]
StopTokens = Annotated[list[int], Field(max_length=bounds.MOST_STOP_TOKENS, fail_fast=True)]
AllowedTokens = Annotated[list[int], Field(max_length=bounds.MOST_ALLOWED_TOKENS, fail_fast=True)]
LogprobTokens = Annotated[list[int], Field(max_length=bounds.MOST_LOGPROB_TOKENS, fail_fast=True)]
LogitBias = Annotated[dict[str, float], Field(max_length=bounds.MOST_LOGIT_BIASES)]


class _GenerationBody(Body):
    """The fields that chat and text completions share."""

    model: str = Field(
        max_length=bounds.MOST_NAME_CHARACTERS,
        examples=["support"],
        description="NAME, NAME@alias, NAME@v3, or base.",
    )
    frequency_penalty: float | None = None
    logit_bias: LogitBias | None = None
    max_tokens: int | None = None
    n: int | None = 1
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | Stops | None = None
    stream: bool | None = False
    stream_options: StreamOptionsBody | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    response_format: ResponseFormatBody | None = None
    # vLLM's additions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    stop_token_ids: StopTokens | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    allowed_token_ids: AllowedTokens | None = None
    bad_words: BadWords | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: LogprobTokens | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    structured_outputs: StructuredOutputsBody | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # Accepted, without effect here.
    metadata: AnyObject | None = Field(default=None, description="Ignored.")
    store: bool | None = Field(default=None, description="Ignored: nothing is stored.")
    service_tier: str | None = Field(default=None, description="Ignored.")
    safety_identifier: str | None = Field(default=None, description="Ignored.")
    prompt_cache_key: str | None = Field(default=None, description="Ignored.")
    length_penalty: float | None = Field(default=None, description="Ignored: no beam search.")
    request_id: str | None = Field(default=None, description="Ignored: send x-request-id.")
    # Known, refused where they ask for what is not served.
    use_beam_search: bool = Field(default=False, description="Refused when true.")
    priority: int = Field(default=0, description="Refused unless 0: tenants are served fairly.")

    def options(self) -> Options:
        if self.use_beam_search:
            raise InvalidRequest(
                "Beam search is not served; leave use_beam_search out.", param="use_beam_search"
            )
        if self.priority:
            raise InvalidRequest(
                "priority is not served: every tenant has the same; leave it out.",
                param="priority",
            )
        stream_options = self.stream_options or StreamOptionsBody()
        return Options(
            stream=bool(self.stream),
            include_usage=stream_options.include_usage,
            continuous_usage=stream_options.continuous_usage_stats,
            user=self.user,
            cache_salt=self.cache_salt or "",
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            truncation_side=self.truncation_side or "left",
            return_token_ids=bool(self.return_token_ids),
            return_tokens_as_token_ids=bool(self.return_tokens_as_token_ids),
        )

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        return SamplingParams(
            n=1 if self.n is None else self.n,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=_stop(self.stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
            logit_bias=_logit_bias(self.logit_bias or {}),
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            bad_words=tuple(self.bad_words or ()),
            logprobs=logprobs,
            logprob_token_ids=tuple(self.logprob_token_ids or ()),
            prompt_logprobs=self.prompt_logprobs,
            structured=_structured(self.response_format, self.structured_outputs),
        )


class ChatBody(_GenerationBody):
    """`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

    messages: Messages
    logprobs: bool | None = False
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoiceBody | None = None
    parallel_tool_calls: bool | None = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: AnyObject | None = None
    documents: Documents | None = None
    echo: bool = False
    modalities: Modalities | None = None
    reasoning_effort: str | None = Field(default=None, description="Ignored.")
    include_reasoning: bool = Field(default=True, description="Ignored.")
    verbosity: str | None = Field(default=None, description="Ignored.")
    chat_template: str | None = Field(
        default=None, description="Refused: templates belong to the adapter's contract."
    )

    def to_core(self) -> ChatRequest:
        """Raises InvalidRequest for what pydantic cannot see."""
        if self.chat_template is not None:
            raise InvalidRequest(
                "A chat template cannot be sent with a request; it belongs to the adapter's "
                "manifest, or to engine.chat_template.",
                param="chat_template",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs set to true.", param="top_logprobs")
        kwargs = dict(self.chat_template_kwargs or {})
        if self.documents is not None:
            kwargs["documents"] = list(self.documents)
        max_tokens = self.max_tokens
        if self.max_completion_tokens is not None:
            max_tokens = self.max_completion_tokens
        return ChatRequest(
            model=self.model,
            messages=tuple(_message(body, i) for i, body in enumerate(self.messages)),
            sampling=self.sampling(max_tokens, (self.top_logprobs or 0) if self.logprobs else None),
            options=self.options(),
            tools=tuple(_tool(body) for body in self.tools or ()),
            tool_choice=_tool_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            add_special_tokens=self.add_special_tokens,
            template_kwargs=kwargs,
            echo=self.echo,
        )


Texts = Annotated[list[str], Field(max_length=bounds.MOST_PROMPTS, fail_fast=True)]
TokenIds = Annotated[list[int], Field(max_length=bounds.MOST_PROMPT_TOKENS, fail_fast=True)]
Prompts = Annotated[list[TokenIds], Field(max_length=bounds.MOST_PROMPTS, fail_fast=True)]


class CompletionBody(_GenerationBody):
    """`POST /v1/completions` (https://platform.openai.com/docs/api-reference/completions)."""

    prompt: str | Texts | TokenIds | Prompts
    max_tokens: int | None = 16
    echo: bool | None = False
    logprobs: int | None = None
    add_special_tokens: bool = True
    best_of: int | None = Field(default=None, description="Refused unless equal to n.")
    suffix: str | None = Field(default=None, description="Refused: no model here fills in.")

    def to_core(self) -> CompletionRequest:
        """Raises InvalidRequest for what pydantic cannot see."""
        if self.suffix:
            raise InvalidRequest("suffix is not served; leave it out.", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest("best_of is not served; ask for n instead.", param="best_of")
        sampling = self.sampling(self.max_tokens, self.logprobs)
        return CompletionRequest(
            model=self.model,
            prompts=_prompts(self.prompt),
            sampling=sampling,
            options=self.options(),
            echo=bool(self.echo),
            add_special_tokens=self.add_special_tokens,
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


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    for token_id in bias:
        if not _TOKEN_ID.fullmatch(token_id):
            raise InvalidRequest(
                f"The keys of logit_bias have to be token ids, such as '42', not "
                f"'{token_id[:40]}'.",
                param="logit_bias",
            )
    return {int(token_id): value for token_id, value in bias.items()}


def _structured(
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


def _message(body: MessageBody, position: int) -> Message:
    return Message(
        role=body.role,
        content=_content(body.content, position),
        name=body.name,
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in body.tool_calls or ()
        ),
        tool_call_id=body.tool_call_id,
    )


def _content(content: str | list[TextPart] | None, position: int) -> str | None:
    if content is None or isinstance(content, str):
        return content
    for part in content:
        if part.type != "text" or part.text is None:
            raise InvalidRequest(
                f"This model reads text only, not '{part.type}'.",
                param=f"messages[{position}].content",
            )
    return "\n".join(part.text or "" for part in content)  # as vLLM does


def _tool(body: ToolBody) -> Tool:
    function = body.function
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=json_text(function.parameters or {"type": "object", "properties": {}}),
        strict=bool(function.strict),
    )


def _tool_choice(choice: str | NamedToolChoiceBody | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case NamedToolChoiceBody():
            return ToolChoice("named", choice.function.name)
        case "none" | "auto" | "required":
            return ToolChoice(choice)
        case _:
            raise InvalidRequest(f"tool_choice '{choice}' is unknown.", param="tool_choice")
