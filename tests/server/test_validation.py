from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from loragate.server.gateway.validation import RequestLimits, validate

LIMITS = RequestLimits(vocab_size=100, max_logprobs=5, max_choices=8)
CHAT = ChatRequest("support", (Message("user", "hi"),))
COMPLETION = CompletionRequest("base", ("hi",))
TOOL = Tool("get_time", parameters='{"type": "object"}')


def sampling(**values: object) -> ChatRequest:
    return replace(CHAT, sampling=replace(SamplingParams(), **values))


def accepts(request: ChatRequest | CompletionRequest) -> bool:
    try:
        validate(request, LIMITS)
    except InvalidRequest:
        return False
    return True


# Field, lowest and highest good value, and values just outside of them.
RANGES: list[tuple[str, float, float, float, float | None]] = [
    ("n", 1, 8, 0, 9),
    ("max_tokens", 1, 2**62, -1, 2**70),
    ("min_tokens", 0, 2**62, -1, 10**400),
    ("temperature", 0, 10, -0.001, 10.001),
    ("top_p", 0.001, 1, 0, 1.001),
    ("top_k", -1, 2**62, -2, 10**400),
    ("min_p", 0, 1, -0.001, 1.001),
    ("presence_penalty", -2, 2, -2.001, 2.001),
    ("frequency_penalty", -2, 2, -2.001, 2.001),
    ("repetition_penalty", 0.001, 10, 0, 10.001),
    ("seed", -(2**63), 2**63 - 1, -(2**63) - 1, 2**63 + 4096),
    ("logprobs", 0, 5, -1, 6),
    ("prompt_logprobs", 0, 5, -1, 6),
]


@pytest.mark.parametrize(("field", "low", "high", "below", "above"), RANGES)
def test_each_number_has_its_range_and_is_refused_by_its_name(
    field: str, low: float, high: float, below: float, above: float | None
) -> None:
    for good in (low, high):
        validate(sampling(**{field: good}), LIMITS)
    for bad in (below, above):
        with pytest.raises(InvalidRequest, match=field) as refusal:
            validate(sampling(**{field: bad}), LIMITS)
        # A chat says it in a field of another name.
        assert refusal.value.param == ("top_logprobs" if field == "logprobs" else field)
        assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        (
            "seed",
            -(2**63) - 1,
            "seed has to be at least -9223372036854775808 and at most 9223372036854775807, not a "
            "far smaller one.",
        ),
        (
            "seed",
            10**400,
            "seed has to be at least -9223372036854775808 and at most 9223372036854775807, not a "
            "far larger number.",
        ),
        ("n", 12345678, "n has to be at least 1 and at most 8, not 12345678."),
        ("temperature", 10.5, "temperature has to be at least 0 and at most 10, not 10.5."),
        ("top_p", 0, "top_p has to be above 0 and at most 1, not 0."),
    ],
)
def test_what_is_said_of_a_number_is_true(field: str, value: float, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        validate(sampling(**{field: value}), LIMITS)
    assert str(refusal.value) == sentence


FLOATS = ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"]


@given(field=st.sampled_from(FLOATS), value=st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_outside_its_range_passes_and_none_inside_is_refused(
    field: str, value: float
) -> None:
    low, high = next((low, high) for name, low, high, _, _ in RANGES if name == field)
    above_low = value > 0 if field in ("top_p", "repetition_penalty") else value >= low
    assert accepts(sampling(**{field: value})) == (above_low and value <= high)


@given(st.integers(), st.integers())
def test_whole_numbers_of_any_size_are_taken_or_refused_and_nothing_else(
    value: int, token_id: int
) -> None:
    assert accepts(sampling(max_tokens=value)) == (1 <= value <= 2**63)
    assert accepts(sampling(stop_token_ids=(token_id,))) == (0 <= token_id < 100)
    assert accepts(replace(COMPLETION, prompts=((token_id,),))) == (0 <= token_id < 100)


TEXT = StructuredOutput
REFUSED: list[tuple[ChatRequest | CompletionRequest, str]] = [
    (sampling(min_tokens=5, max_tokens=4), "min_tokens"),
    (sampling(stop=("a", "")), "stop"),
    (sampling(stop=("a",) * 65), "stop"),
    (sampling(bad_words=("",)), "bad_words"),
    (sampling(bad_words=("a", "\n")), "bad_words"),
    (sampling(bad_words=(" \t ",)), "bad_words"),
    (sampling(stop_token_ids=(100,)), "stop_token_ids"),
    (sampling(allowed_token_ids=(-1,)), "allowed_token_ids"),
    (sampling(logprob_token_ids=(100,), logprobs=0), "logprob_token_ids"),
    (sampling(logprob_token_ids=(1,) * 129, logprobs=0), "logprob_token_ids"),
    (sampling(logprob_token_ids=(1,)), "logprob_token_ids"),
    (sampling(logit_bias={100: 1.0}), "logit_bias"),
    (sampling(logit_bias={1: 101.0}), "logit_bias"),
    (sampling(logit_bias={1: float("nan")}), "logit_bias"),
    (
        sampling(structured=TEXT("choice", param="structured_outputs.choice")),
        "structured_outputs.choice",
    ),
    (sampling(structured=TEXT("choice", choices=("",))), "response_format"),
    (sampling(structured=TEXT("regex")), "response_format"),
    (sampling(structured=TEXT("json_schema", "{")), "response_format"),
    (sampling(structured=TEXT("json_schema", "[]")), "response_format"),
    (sampling(max_tokens=0), "max_tokens"),
    (replace(CHAT, options=Options(user="x" * 513)), "user"),
    (replace(CHAT, options=Options(cache_salt="x" * 513)), "cache_salt"),
    (replace(CHAT, options=Options(include_usage=True)), "stream_options"),
    (replace(CHAT, options=Options(continuous_usage=True)), "stream_options"),
    (replace(CHAT, options=Options(truncate_prompt_tokens=-2)), "truncate_prompt_tokens"),
    (replace(CHAT, options=Options(truncate_prompt_tokens=0)), "truncate_prompt_tokens"),
    (replace(CHAT, messages=()), "messages"),
    (replace(CHAT, messages=(Message("boss", "hi"),)), "messages[0].role"),
    (replace(CHAT, messages=(Message("user", "a"), Message("user"))), "messages[1].content"),
    (
        replace(
            CHAT,
            messages=(
                Message("assistant", "", tool_calls=(ToolCall("1", "f", f"[{'1,' * 140_000}1]"),)),
            ),
        ),
        "messages[0].tool_calls",
    ),
    (replace(CHAT, continue_final_message=True), "continue_final_message"),
    (replace(CHAT, tools=(TOOL, TOOL)), "tools"),
    (replace(CHAT, tools=(Tool("a b"),)), "tools"),
    (replace(CHAT, tools=(Tool("x" * 65),)), "tools"),
    (replace(CHAT, tools=(Tool("f", parameters="[]"),)), "tools"),
    (replace(CHAT, tool_choice=ToolChoice("auto")), "tool_choice"),
    (replace(CHAT, tools=(TOOL,), tool_choice=ToolChoice("named", "other")), "tool_choice"),
    (replace(COMPLETION, prompts=()), "prompt"),
    (replace(COMPLETION, prompts=("a", "")), "prompt"),
    (replace(COMPLETION, prompts=((),)), "prompt"),
    (replace(COMPLETION, prompts=((100,),)), "prompt"),
    (replace(COMPLETION, sampling=SamplingParams(max_tokens=0)), "max_tokens"),
    (replace(COMPLETION, prompts=("a",) * 5, sampling=SamplingParams(n=2)), "n"),
]


@pytest.mark.parametrize(("request_", "param"), REFUSED)
def test_what_contradicts_itself_is_refused_by_the_field_s_name(
    request_: ChatRequest | CompletionRequest, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        validate(request_, LIMITS)
    assert refusal.value.param == param


ACCEPTED: list[Callable[[], ChatRequest | CompletionRequest]] = [
    lambda: CHAT,
    lambda: COMPLETION,
    lambda: replace(COMPLETION, sampling=SamplingParams(max_tokens=0), echo=True),
    lambda: replace(COMPLETION, prompts=("a",) * 4, sampling=SamplingParams(n=2)),
    lambda: replace(CHAT, continue_final_message=True, add_generation_prompt=False),
    lambda: replace(CHAT, tools=(TOOL,), tool_choice=ToolChoice("named", "get_time")),
    lambda: replace(CHAT, tools=(TOOL,), tool_choice=ToolChoice("required")),
    lambda: replace(CHAT, tool_choice=ToolChoice("none")),
    lambda: replace(CHAT, options=Options(stream=True, include_usage=True)),
    lambda: replace(CHAT, options=Options(truncate_prompt_tokens=-1)),
    lambda: replace(
        CHAT,
        messages=(
            Message("developer", ""),
            Message("assistant", tool_calls=(ToolCall("1", "f", ""),)),
            Message("tool", "x", tool_call_id="1"),
        ),
    ),
    lambda: replace(CHAT, messages=(Message("user", "a"), Message("assistant"))),
    lambda: replace(
        sampling(structured=StructuredOutput("json_object")),
        tools=(TOOL,),
        tool_choice=ToolChoice("required"),
    ),
    lambda: sampling(logprob_token_ids=(1, 2, 3), logprobs=2),
    lambda: sampling(structured=StructuredOutput("json_object")),
    lambda: sampling(structured=StructuredOutput("choice", choices=("a", "b"))),
    lambda: sampling(structured=StructuredOutput("json_schema", "{}")),
    lambda: sampling(logit_bias={0: -100.0, 99: 100.0}),
]


@pytest.mark.parametrize("make", ACCEPTED)
def test_what_can_be_done_is_accepted(make: Callable[[], ChatRequest | CompletionRequest]) -> None:
    validate(make(), LIMITS)
