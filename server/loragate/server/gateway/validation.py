"""Checks a request before anything is spent on it: ranges, counts, and what contradicts itself.

One place for both transports. Each refusal names the field as OpenAI's API does.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    Options,
    Request,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolCall,
)
from loragate.server.errors import InvalidRequest
from loragate.server.gateway import bounds, fields
from loragate.server.gateway.bounds import check_characters, check_count
from loragate.server.gateway.json_shape import check_json, is_too_deep

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds that the served model and the configuration set."""

    vocab_size: int
    max_logprobs: int
    max_choices: int


def validate(request: Request, limits: RequestLimits) -> None:
    """Raises InvalidRequest for the first thing that is wrong."""
    _check_fields(request, limits)
    _check_sampling(request.sampling, limits)
    _check_options(request.options)
    if isinstance(request, ChatRequest):
        _check_chat(request)
        prompts = 1
    else:
        _check_completion(request, limits)
        prompts = len(request.prompts)
    if prompts * request.sampling.n > limits.max_choices:
        raise InvalidRequest(
            f"The request asks for {prompts * request.sampling.n} choices, more than the "
            f"{limits.max_choices} that one request may have; lower n or send fewer prompts.",
            param="n",
        )


def _check_fields(request: Request, limits: RequestLimits) -> None:
    """By the table's rows."""
    call: fields.Call = "chat" if isinstance(request, ChatRequest) else "completion"
    for row in fields.served(call):
        home, _, attribute = row.into.rpartition(".")
        noun = request if not home else request.sampling if home == "sampling" else request.options
        value: Any = getattr(noun, attribute) if attribute else None
        if row.range is not None:
            _within(row.name, value, row.range, limits)
        if row.most is not None and isinstance(value, tuple):
            check_count(row.name, len(value), row.most)
        if row.kind == "integers":
            check_token_ids(row.name, value, limits.vocab_size)


def _check_sampling(sampling: SamplingParams, limits: RequestLimits) -> None:
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequest("min_tokens is larger than max_tokens.", param="min_tokens")
    for param, texts in (("stop", sampling.stop), ("bad_words", sampling.bad_words)):
        check_characters(param, texts, bounds.MOST_SHORT_TEXT)
        if not all(texts):
            raise InvalidRequest(f"{param} has an empty string.", param=param)
    if not all(map(str.strip, sampling.bad_words)):
        raise InvalidRequest(
            "bad_words has an entry of white space alone, which the engine cannot keep out; give "
            "its token a logit_bias of -100 instead.",
            param="bad_words",
        )
    if sampling.logprob_token_ids and sampling.logprobs is None:
        raise InvalidRequest("logprob_token_ids needs logprobs.", param="logprob_token_ids")
    check_count("logit_bias", len(sampling.logit_bias), bounds.MOST_LOGIT_BIASES)
    _check_logit_bias(sampling.logit_bias, limits.vocab_size)
    if sampling.structured is not None:
        _check_structured(sampling.structured)


def _within(param: str, value: float | None, allowed: fields.Range, limits: RequestLimits) -> None:
    if value is None:
        return
    low, most = allowed.least, allowed.most
    high: float = getattr(limits, most) if isinstance(most, str) else most
    # Compared before it is shown: a whole number of JSON may be too large for a float.
    if not low <= value <= high or (allowed.is_above and value == low):
        above = "above" if allowed.is_above else "at least"
        raise InvalidRequest(
            f"{param} has to be {above} {_shown(low)} and at most {_shown(high)}, not "
            f"{_shown(value)}.",
            param=param,
        )


def _shown(value: float) -> str:
    """A whole number of JSON may have any number of digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if abs(value) <= fields.INT64:
        return str(value)
    return "a far larger number" if value > 0 else "a far smaller one"


def check_token_ids(param: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidRequest where one is none of the vocabulary."""
    for token_id in (min(ids, default=0), max(ids, default=0)):  # the quickest way to look at all
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"{param} has {_shown(token_id)}, which is out of vocabulary: the ids of its "
                f"{vocab_size} tokens go from 0 to {vocab_size - 1}.",
                param=param,
            )


def _check_logit_bias(bias: Mapping[int, float], vocab_size: int) -> None:
    check_token_ids("logit_bias", list(bias), vocab_size)
    for token_id, value in bias.items():
        if not -100 <= value <= 100:
            raise InvalidRequest(
                f"logit_bias of token {token_id} has to be from -100 to 100, not {value:g}.",
                param="logit_bias",
            )


def _check_structured(structured: StructuredOutput) -> None:
    if structured.kind == "choice":
        if not structured.choices or not all(structured.choices):
            raise InvalidRequest(
                "A choice constraint needs at least one choice, none of them empty.",
                param=structured.param,
            )
    elif structured.kind != "json_object" and not structured.value:
        raise InvalidRequest(f"The {structured.kind} constraint is empty.", param=structured.param)
    if structured.kind == "json_schema":
        _check_json_object(structured.param, structured.value, "The JSON schema")


def _check_json_object(param: str, text: str, what: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    check_json(encoded, what, param, bounds.MOST_INNER_VALUES)
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{what} is not valid JSON.", param=param) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} has to be a JSON object.", param=param)


def _check_options(options: Options) -> None:
    if options.user is not None and len(options.user) > 512:
        raise InvalidRequest("user may have 512 characters at most.", param="user")
    if len(options.cache_salt) > 512:
        raise InvalidRequest("cache_salt may have 512 characters at most.", param="cache_salt")
    if not options.stream and (options.include_usage or options.continuous_usage):
        raise InvalidRequest(
            "stream_options only make sense with stream set to true.", param="stream_options"
        )
    if options.truncate_prompt_tokens == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens of 0 would leave nothing of the prompt.",
            param="truncate_prompt_tokens",
        )


def _check_chat(request: ChatRequest) -> None:
    if not request.messages:
        raise InvalidRequest("messages is empty; send at least one.", param="messages")
    for position, message in enumerate(request.messages):
        _check_message(message, position)
    if request.sampling.max_tokens == 0:
        raise InvalidRequest("max_tokens has to be at least 1.", param="max_tokens")
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt contradict each other; "
            "set add_generation_prompt to false.",
            param="continue_final_message",
        )
    _check_tools(request)


def _check_message(message: Message, position: int) -> None:
    param = f"messages[{position}]"
    if message.role not in ROLES:
        raise InvalidRequest(
            f"{param}.role is '{message.role}'; it has to be one of {', '.join(sorted(ROLES))}.",
            param=f"{param}.role",
        )
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(f"{param} has no content.", param=f"{param}.content")
    check_count(f"{param}.tool_calls", len(message.tool_calls), bounds.MOST_TOOL_CALLS)
    for call in message.tool_calls:
        _check_arguments(f"{param}.tool_calls", call)


def _check_arguments(param: str, call: ToolCall) -> None:
    """Of calls made before: what is no JSON will be taken as none, but is not to be too large. A
    model that repeats itself may have opened any number of brackets.
    """
    encoded = call.arguments.encode("utf-8", "surrogatepass")
    if not is_too_deep(encoded):
        check_json(encoded, f"The arguments of '{call.name}'", param, bounds.MOST_INNER_VALUES)


def _check_tools(request: ChatRequest) -> None:
    names = [tool.name for tool in request.tools]
    for tool in request.tools:
        _check_tool(tool)
    if len(set(names)) != len(names):
        raise InvalidRequest("tools has two functions of one name.", param="tools")
    choice = request.tool_choice
    if choice is None or choice.kind == "none":
        return
    if not names:
        raise InvalidRequest("tool_choice is set but tools is empty.", param="tool_choice")
    if choice.kind == "named" and choice.name not in names:
        raise InvalidRequest(
            f"tool_choice names '{choice.name}', which is not among tools.", param="tool_choice"
        )


def _check_tool(tool: Tool) -> None:
    if not _TOOL_NAME.fullmatch(tool.name):
        raise InvalidRequest(
            f"The function name '{tool.name[:80]}' has to be 1 to 64 of the characters "
            "a-z, A-Z, 0-9, '_', '-' and '.'.",
            param="tools",
        )
    _check_json_object("tools", tool.parameters, f"The parameters of '{tool.name}'")


def _check_completion(request: CompletionRequest, limits: RequestLimits) -> None:
    if not request.prompts:
        raise InvalidRequest("prompt is empty; send at least one.", param="prompt")
    for prompt in request.prompts:
        if not prompt:
            raise InvalidRequest("prompt has an empty text or list of tokens.", param="prompt")
        if not isinstance(prompt, str):
            check_token_ids("prompt", prompt, limits.vocab_size)
    if request.sampling.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens of 0 only makes sense with echo.", param="max_tokens")
