"""Whether a request is large: all counts that is read, checked, rendered or tokenized."""

from collections.abc import Iterator, Mapping

from loragate.server.core import ChatRequest, CompletionRequest, Message, Request, Tool
from loragate.server.gateway.bounds import SMALL_PROMPT

# What a template writes around a message or a tool, and what looking at one costs, in characters.
_OF_EACH = 32


def is_large(request: Request) -> bool:
    """Ends as soon as it knows, however large the request is."""
    size = 0
    for part in _parts(request):
        size += part
        if size > SMALL_PROMPT:
            return True
    return False


def _parts(request: Request) -> Iterator[int]:
    sampling = request.sampling
    yield len(sampling.logit_bias) + len(sampling.allowed_token_ids)
    if sampling.structured is not None:
        yield len(sampling.structured.value)
        yield from map(len, sampling.structured.choices)
    if isinstance(request, CompletionRequest):
        yield from map(len, request.prompts)
    else:
        yield from _chat_parts(request)


def _chat_parts(request: ChatRequest) -> Iterator[int]:
    for message in request.messages:
        yield from _message_parts(message)
    for tool in request.tools:
        yield from _tool_parts(tool)
    yield from _value_parts(request.template_kwargs)


def _message_parts(message: Message) -> Iterator[int]:
    yield _OF_EACH + len(message.role) + len(message.content or "")
    yield len(message.reasoning or "")
    yield len(message.name or "") + len(message.tool_call_id or "")
    for call in message.tool_calls:
        yield _OF_EACH + len(call.id) + len(call.name) + len(call.arguments)


def _tool_parts(tool: Tool) -> Iterator[int]:
    yield _OF_EACH + len(tool.name) + len(tool.description) + len(tool.parameters)


def _value_parts(value: object) -> Iterator[int]:
    """Of decoded JSON."""
    yield 8
    if isinstance(value, str):
        yield len(value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield len(name)
            yield from _value_parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _value_parts(inner)
