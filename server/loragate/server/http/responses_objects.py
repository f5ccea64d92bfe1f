"""What `/v1/responses` says: a response, its items, and the events of its stream.

Fields and their order are those of https://platform.openai.com/docs/api-reference/responses. All
are msgspec structs: the events of a stream are encoded once a token.
"""

from collections.abc import Sequence

import msgspec


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class OutputText(msgspec.Struct):
    text: str
    logprobs: list[Logprob]
    type: str = "output_text"
    annotations: tuple[()] = ()


class ReasoningText(msgspec.Struct):
    text: str
    type: str = "reasoning_text"


class MessageItem(msgspec.Struct):
    id: str
    content: list[OutputText]
    status: str = "in_progress"
    type: str = "message"
    role: str = "assistant"


class ReasoningItem(msgspec.Struct):
    id: str
    content: list[ReasoningText]
    status: str = "in_progress"
    type: str = "reasoning"
    summary: tuple[()] = ()
    encrypted_content: None = None


class CallItem(msgspec.Struct):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: str = "in_progress"
    type: str = "function_call"


Item = MessageItem | ReasoningItem | CallItem


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    reason: str


class ResponseError(msgspec.Struct):
    code: str
    message: str


class Echo(msgspec.Struct, kw_only=True):
    """What an answer says of its request. What may be large is JSON already, since a stream says it
    three times.
    """

    model: str
    instructions: msgspec.Raw
    tools: msgspec.Raw
    tool_choice: msgspec.Raw
    text: msgspec.Raw
    reasoning: msgspec.Raw
    metadata: msgspec.Raw
    parallel_tool_calls: bool
    max_output_tokens: int | None
    max_tool_calls: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    truncation: str
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    # The same for every answer here.
    background: bool = False
    store: bool = False
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None


class Response(Echo, kw_only=True):
    id: str
    created_at: int
    status: str
    object: str = "response"
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: Sequence[Item] = ()
    usage: ResponseUsage | None = None


class Event(msgspec.Struct, kw_only=True):
    """One of a stream; its number is given when it is written."""

    type: str
    sequence_number: int = 0


class ResponseEvent(Event, kw_only=True):
    response: Response


class ItemEvent(Event, kw_only=True):
    output_index: int
    item: Item


class PartEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0
    part: OutputText | ReasoningText


class TextDeltaEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str
    logprobs: list[Logprob]


class TextDoneEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0
    text: str
    logprobs: list[Logprob]


class ReasoningDeltaEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str


class ReasoningDoneEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int = 0
    text: str


class ArgumentsDeltaEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorObject(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEvent(Event, kw_only=True):
    """Flat as OpenAI documents it, and with `error` as OpenAI sends it: clients read either."""

    message: str
    param: str | None
    code: str | None
    error: ErrorObject
