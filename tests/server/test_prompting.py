import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest

from loragate.adapters.child_process.process import ChildLimits
from loragate.adapters.format.manifest import Contract
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.rendering.templates import Templates
from loragate.server.concurrency.fair_threads import FairThreads
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
from loragate.server.errors import ContextLengthExceeded, InvalidRequest
from loragate.server.gateway import bounds, prompting
from loragate.server.gateway.prompting import NO_CONTRACT, Prepared, PromptBuilder
from loragate.server.gateway.request_size import is_large
from loragate.server.gateway.validation import RequestLimits, validate
from support.engines.echo_engine import TINY_MODEL
from support.models.tokenizers import byte_tokenizer

MODEL = replace(TINY_MODEL, max_model_len=100)
PLENTY = replace(TINY_MODEL, max_model_len=100_000)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(byte_tokenizer())


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    limits = ChildLimits(seconds=0.2, memory_bytes=2**28, patience=50)
    with Templates(children=2, limits=limits) as templates:
        yield templates


@pytest.fixture(scope="module")
def builder(renderer: Renderer, templates: Templates) -> PromptBuilder:
    return PromptBuilder(renderer, MODEL, FairThreads(), templates)


@pytest.fixture(scope="module")
def roomy(renderer: Renderer, templates: Templates) -> PromptBuilder:
    """Its model's context holds plenty."""
    return PromptBuilder(renderer, PLENTY, FairThreads(), templates)


def chat(*turns: tuple[str, str], **sampling: object) -> ChatRequest:
    messages = tuple(Message(role, text) for role, text in turns or [("user", "hi")])
    return ChatRequest("support", messages, replace(SamplingParams(), **sampling))


def completion(*prompts: str | tuple[int, ...], **sampling: object) -> CompletionRequest:
    return CompletionRequest("base", prompts, replace(SamplingParams(max_tokens=4), **sampling))


async def prepare(
    builder: PromptBuilder, request: ChatRequest | CompletionRequest, contract: Contract
) -> Prepared:
    return await builder.prepare(request, contract, "acme")


async def text_of(builder: PromptBuilder, request: ChatRequest, contract: Contract) -> str:
    (ids,) = (await prepare(builder, request, contract)).prompt_ids
    return builder.renderer.decode(ids)


async def test_a_chat_is_put_into_the_model_s_template(builder: PromptBuilder) -> None:
    text = await text_of(builder, chat(("user", "hi")), NO_CONTRACT)
    assert text == "<|turn|>user\nhi<|end|><|turn|>assistant\n"


async def test_the_contract_s_system_prompt_comes_first(builder: PromptBuilder) -> None:
    contract = Contract(system_prompt="Be brief.")
    text = await text_of(builder, chat(("user", "hi")), contract)
    assert text.startswith("<|turn|>system\nBe brief.<|end|><|turn|>user\nhi")


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_a_request_s_own_system_prompt_replaces_the_contract_s(
    builder: PromptBuilder, role: str
) -> None:
    contract = Contract(system_prompt="Be brief.")
    text = await text_of(builder, chat((role, "Be long."), ("user", "hi")), contract)
    assert "brief" not in text
    assert text.startswith("<|turn|>system\nBe long.")


async def test_the_contract_s_template_replaces_the_model_s(builder: PromptBuilder) -> None:
    contract = Contract(chat_template="Q: {{ messages[-1].content }} A:")
    assert await text_of(builder, chat(("user", "hi")), contract) == "Q: hi A:"


async def test_a_template_that_refuses_is_the_request_s_fault(builder: PromptBuilder) -> None:
    contract = Contract(chat_template="{{ raise_exception('no such role') }}")
    with pytest.raises(InvalidRequest, match="no such role") as refusal:
        await prepare(builder, chat(), contract)
    assert refusal.value.param == "messages"


async def test_a_prompt_without_tokens_is_refused(builder: PromptBuilder) -> None:
    with pytest.raises(InvalidRequest, match="no tokens") as refusal:
        await prepare(builder, chat(), Contract(chat_template="{# nothing #}"))
    assert refusal.value.param == "messages"


async def test_a_request_s_word_goes_before_the_contract_s_and_that_before_the_model_s(
    renderer: Renderer, templates: Templates
) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}
    model = replace(MODEL, default_sampling=defaults)
    builder = PromptBuilder(renderer, model, FairThreads(), templates)
    contract = Contract(sampling_defaults={"temperature": 0.2, "top_p": 0.5, "seed": 3})
    sampling = (await prepare(builder, chat(temperature=0.0), contract)).sampling
    assert sampling.temperature == 0.0
    assert sampling.top_p == 0.5
    assert sampling.top_k == 50
    assert sampling.seed == 3
    assert sampling.min_p is None


async def test_the_contract_s_cap_binds_whatever_a_request_says(builder: PromptBuilder) -> None:
    contract = Contract(max_tokens_cap=5)
    for wanted in (None, 3, 5, 20):
        prepared = await prepare(builder, chat(max_tokens=wanted, min_tokens=2), contract)
        assert prepared.sampling.max_tokens == min(wanted or 5, 5)
    prepared = await prepare(builder, chat(min_tokens=9, max_tokens=20), contract)
    assert prepared.sampling.min_tokens == 5


async def test_stops_of_the_request_and_of_the_contract_both_hold(builder: PromptBuilder) -> None:
    contract = Contract(stop=("b",), stop_token_ids=(7, 8))
    prepared = await prepare(builder, chat(stop=("a",), stop_token_ids=(8, 9)), contract)
    assert prepared.sampling.stop == ("a", "b")
    assert prepared.sampling.stop_token_ids == (8, 9, 7)


async def test_a_stop_text_that_is_a_special_token_stops_on_its_id(
    builder: PromptBuilder, renderer: Renderer
) -> None:
    turn, end = (renderer.special_token_ids[text] for text in ("<|turn|>", "<|end|>"))
    prepared = await prepare(builder, chat(stop=("x", "<|turn|>")), Contract(stop=("<|end|>",)))
    assert prepared.sampling.stop_token_ids == (turn, end)
    assert prepared.sampling.stop == ("x", "<|turn|>", "<|end|>")


async def test_a_contract_s_stop_that_the_base_model_has_no_token_for_is_left_out(
    builder: PromptBuilder,
) -> None:
    contract = Contract(stop_token_ids=(MODEL.vocab_size, 3))
    assert (await prepare(builder, chat(), contract)).sampling.stop_token_ids == (3,)


@pytest.mark.parametrize(
    ("side", "keep", "expected"),
    [
        ("left", 3, (7, 8, 9)),
        ("right", 3, (5, 6, 7)),
        ("left", 50, (5, 6, 7, 8, 9)),
        ("right", 50, (5, 6, 7, 8, 9)),
        ("left", None, (5, 6, 7, 8, 9)),
    ],
)
async def test_truncation_keeps_the_side_that_was_asked_for(
    builder: PromptBuilder, side: str, keep: int | None, expected: tuple[int, ...]
) -> None:
    options = Options(truncate_prompt_tokens=keep, truncation_side=side)  # type: ignore[arg-type]
    request = replace(completion((5, 6, 7, 8, 9)), options=options)
    assert (await prepare(builder, request, NO_CONTRACT)).prompt_ids == (expected,)


async def test_truncation_to_the_context_leaves_room_for_one_token(builder: PromptBuilder) -> None:
    request = completion((1,) * 150, max_tokens=1)
    request = replace(request, options=Options(truncate_prompt_tokens=-1))
    prepared = await prepare(builder, request, NO_CONTRACT)
    assert prepared.prompt_tokens == 99


async def test_without_max_tokens_an_answer_may_fill_the_context(builder: PromptBuilder) -> None:
    prepared = await prepare(builder, completion((1,) * 30, max_tokens=None), NO_CONTRACT)
    assert prepared.sampling.max_tokens == 70
    assert prepared.most_tokens == 100


@pytest.mark.parametrize(
    ("length", "max_tokens", "param"),
    [(97, 4, "max_tokens"), (100, None, "prompt"), (150, 1, "prompt")],
)
async def test_what_does_not_fit_is_refused_with_the_numbers(
    builder: PromptBuilder, length: int, max_tokens: int | None, param: str
) -> None:
    # The words by which LiteLLM and others know that a longer context would have done.
    words = rf"This model's maximum context length is 100 tokens, but .* has {length}"
    with pytest.raises(ContextLengthExceeded, match=words) as refusal:
        await prepare(builder, completion((1,) * length, max_tokens=max_tokens), NO_CONTRACT)
    assert refusal.value.param == param


async def test_what_just_fits_is_taken(builder: PromptBuilder) -> None:
    prepared = await prepare(builder, completion((1,) * 96, max_tokens=4), NO_CONTRACT)
    assert prepared.most_tokens == 100


async def test_the_reserve_counts_each_prompt_once_and_each_choice_to_its_end(
    builder: PromptBuilder,
) -> None:
    prepared = await prepare(builder, completion((1, 2), (3,), n=3, max_tokens=10), NO_CONTRACT)
    assert prepared.prompt_tokens == 3
    assert prepared.most_tokens == 3 + 2 * 3 * 10


async def test_long_texts_are_tokenized_as_short_ones_are(roomy: PromptBuilder) -> None:
    text = "déjà vu " * 2000
    prepared = await prepare(roomy, completion(text, text[:50]), NO_CONTRACT)
    assert [roomy.renderer.decode(ids) for ids in prepared.prompt_ids] == [text, text[:50]]


@pytest.mark.parametrize(
    ("logprobs", "prompt_logprobs", "echo", "expected"),
    [(2, None, True, 2), (2, 4, True, 4), (None, 1, True, 1), (2, None, False, None)],
)
async def test_echo_with_logprobs_scores_the_prompt(
    builder: PromptBuilder,
    logprobs: int | None,
    prompt_logprobs: int | None,
    echo: bool,
    expected: int | None,
) -> None:
    request = completion("ab", logprobs=logprobs, prompt_logprobs=prompt_logprobs)
    prepared = await prepare(builder, replace(request, echo=echo), NO_CONTRACT)
    assert prepared.sampling.prompt_logprobs == expected


TOOLS = (Tool("get_time", "Tells the time.", '{"type": "object"}'),)


async def test_tools_are_told_to_the_model_unless_it_may_not_use_them(roomy: PromptBuilder) -> None:
    request = replace(chat(("user", "hi")), tools=TOOLS)
    assert "get_time" in await text_of(roomy, request, NO_CONTRACT)
    request = replace(request, tool_choice=ToolChoice("none"))
    assert "get_time" not in await text_of(roomy, request, NO_CONTRACT)


async def test_earlier_tool_calls_reach_the_template_as_objects(roomy: PromptBuilder) -> None:
    call = ToolCall("call-1", "get_time", '{"zone": "UTC"}')
    request = ChatRequest(
        "support",
        (
            Message("user", "time?"),
            Message("assistant", tool_calls=(call,)),
            Message("tool", "12:00", tool_call_id="call-1"),
        ),
    )
    contract = Contract(
        chat_template="{{ messages[1].tool_calls[0].function.arguments.zone }} "
        "{{ messages[2].tool_call_id }}"
    )
    assert await text_of(roomy, request, contract) == "UTC call-1"


@pytest.mark.parametrize(
    "written",
    [
        "",
        '{"zone": "U',
        '"UTC"',
        "3",
        "null",
        "[1]",
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        "[" * 50_000,
    ],
    ids=lambda written: written[:12],
)
async def test_arguments_that_a_model_wrote_wrong_are_none_in_the_next_turn(
    roomy: PromptBuilder, written: str
) -> None:
    call = ToolCall("call-1", "get_time", written)
    turns = (Message("assistant", tool_calls=(call,)), Message("tool", "?", tool_call_id="call-1"))
    request = ChatRequest("support", turns)
    validate(request, RequestLimits(vocab_size=100, max_logprobs=5, max_choices=1))
    contract = Contract(chat_template="{{ messages[0].tool_calls[0].function.arguments }}")
    assert await text_of(roomy, request, contract) == "{}"


RUNS_AWAY = Contract(
    chat_template="{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
)


async def test_adapter_s_template_that_runs_away_ends_and_holds_nobody_up(
    builder: PromptBuilder,
) -> None:
    own = Contract(chat_template="{{ messages[0].content }}")
    runaways = [asyncio.create_task(builder.prepare(chat(), RUNS_AWAY, "globex")) for _ in range(3)]
    await asyncio.sleep(0)  # they have begun

    assert await text_of(builder, chat(("user", "hi")), NO_CONTRACT)
    assert await text_of(builder, chat(("user", "hi")), own) == "hi"

    assert not all(task.done() for task in runaways)
    results = await asyncio.gather(*runaways, return_exceptions=True)
    assert all(isinstance(result, InvalidRequest) for result in results)
    assert "computes for more than 0.2 s" in str(results[0])


async def test_requests_of_one_adapter_s_template_are_all_rendered(builder: PromptBuilder) -> None:
    own = Contract(chat_template="{{ messages[0].content }}")

    texts = await asyncio.gather(*(text_of(builder, chat(("user", str(n))), own) for n in range(9)))

    assert texts == [str(n) for n in range(9)]


# ---- large requests


def counting_renderer(monkeypatch: pytest.MonkeyPatch) -> tuple[Renderer, list[int]]:
    """And the lengths of the texts that it tokenizes."""
    renderer = Renderer(byte_tokenizer("{{ messages[0].content }}{{ shown }}"))
    tokenized: list[int] = []
    encode = renderer.tokenizer.encode

    def counting(text: str, *, add_special_tokens: bool) -> list[int]:
        tokenized.append(len(text))
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(renderer.tokenizer, "encode", counting)
    return renderer, tokenized


@pytest.mark.parametrize(
    "request_",
    [
        completion("x" * 100_000),
        completion("ab", "x" * 100_000),
        chat(("user", "x" * 100_000)),
        replace(chat(), template_kwargs={"shown": "x" * 100_000}),
    ],
)
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    monkeypatch: pytest.MonkeyPatch,
    templates: Templates,
    request_: ChatRequest | CompletionRequest,
) -> None:
    renderer, tokenized = counting_renderer(monkeypatch)
    builder = PromptBuilder(renderer, MODEL, FairThreads(), templates)
    with pytest.raises(ContextLengthExceeded, match="at least 1250"):  # of 8 bytes
        await prepare(builder, request_, NO_CONTRACT)
    assert max(tokenized, default=0) < 100


@pytest.mark.parametrize(("side", "kept"), [("left", "tail."), ("right", "A hea")])
@pytest.mark.parametrize("is_chat", [False, True])
async def test_of_a_text_that_will_be_truncated_no_more_is_tokenized_than_can_be_kept(
    monkeypatch: pytest.MonkeyPatch,
    templates: Templates,
    side: Literal["left", "right"],
    kept: str,
    is_chat: bool,
) -> None:
    renderer, tokenized = counting_renderer(monkeypatch)
    builder = PromptBuilder(renderer, MODEL, FairThreads(), templates)
    text = f"A head, {'x' * 100_000} and a tail."
    request = chat(("user", text)) if is_chat else completion(text)
    options = Options(truncate_prompt_tokens=5, truncation_side=side)
    prepared = await prepare(builder, replace(request, options=options), NO_CONTRACT)
    assert builder.renderer.decode(prepared.prompt_ids[0]) == kept
    assert max(tokenized) < 5000


async def test_what_is_kept_of_a_text_may_still_be_too_long(builder: PromptBuilder) -> None:
    request = completion("x" * 10_000)
    request = replace(request, options=Options(truncate_prompt_tokens=101))
    with pytest.raises(ContextLengthExceeded):
        await prepare(builder, request, NO_CONTRACT)


LONG = "x" * 5000
CALL = ToolCall("1", "f", LONG)


@pytest.mark.parametrize(
    "request_",
    [
        chat(("user", LONG)),
        ChatRequest("base", (Message("user", ""),) * 200),
        ChatRequest("base", (Message("user", "", name=LONG),)),
        ChatRequest("base", (Message("user", "", tool_call_id=LONG),)),
        ChatRequest("base", (Message("assistant", None, tool_calls=(CALL,)),)),
        replace(chat(), tools=(Tool("f", LONG),)),
        replace(chat(), tools=(Tool("f", parameters=LONG),)),
        replace(chat(), tools=(Tool("f"),) * 128),
        replace(chat(), template_kwargs={"a": [{"b": LONG}]}),
        replace(chat(), template_kwargs={LONG: 1}),
        replace(chat(), template_kwargs={"documents": [{}] * 1000}),
        chat(structured=StructuredOutput("json_schema", LONG)),
        chat(structured=StructuredOutput("choice", choices=(LONG,))),
        chat(logit_bias=dict.fromkeys(range(5000), 1.0)),
        completion(LONG),
        completion(*["abc"] * 2000),
        completion((1,) * 5000),
    ],
)
def test_whatever_is_read_rendered_or_tokenized_makes_a_request_large(
    request_: ChatRequest | CompletionRequest,
) -> None:
    assert is_large(request_)


@pytest.mark.parametrize(
    "request_",
    [
        chat(("system", "Be brief."), ("user", "hi " * 500)),
        replace(chat(), tools=(Tool("f", "Does it.", '{"type": "object"}'),) * 9),
        completion("abc", "de"),
    ],
)
def test_an_ordinary_request_is_not_large(request_: ChatRequest | CompletionRequest) -> None:
    assert not is_large(request_)


async def test_the_model_s_own_template_has_a_time_for_a_large_request(
    monkeypatch: pytest.MonkeyPatch, templates: Templates
) -> None:
    monkeypatch.setattr(prompting, "_BASE_TEMPLATE_SECONDS", 0.05)
    assert RUNS_AWAY.chat_template is not None
    renderer = Renderer(byte_tokenizer(RUNS_AWAY.chat_template))
    builder = PromptBuilder(renderer, PLENTY, FairThreads(), templates)
    with pytest.raises(InvalidRequest, match="computes for more than"):
        await prepare(builder, chat(("user", "x" * 5000)), NO_CONTRACT)


@pytest.mark.parametrize(
    ("prompts", "alternatives", "n", "echo", "is_taken"),
    [
        (((1,) * 50,), 1, 1, False, True),
        (((1,) * 51,), 1, 1, False, False),
        (((1,) * 10,) * 5, 1, 1, False, True),
        (((1,) * 10,) * 5, 2, 1, False, False),
        (((1,) * 90,), 0, 1, False, True),
        (((1,) * 10,), 1, 5, False, True),
        (((1,) * 10,), 1, 6, False, False),
        (((1,) * 60,), None, 1, True, False),
    ],
)
async def test_the_prompt_s_log_probabilities_have_a_bound_for_all_prompts_together(
    renderer: Renderer,
    templates: Templates,
    prompts: tuple[tuple[int, ...], ...],
    alternatives: int | None,
    n: int,
    echo: bool,
    is_taken: bool,
) -> None:
    builder = PromptBuilder(renderer, MODEL, FairThreads(), templates, most_prompt_scores=100)
    logprobs = 1 if echo else None
    request = completion(*prompts, prompt_logprobs=alternatives, logprobs=logprobs, n=n)
    request = replace(request, echo=echo)
    if is_taken:
        await prepare(builder, request, NO_CONTRACT)
        return
    with pytest.raises(InvalidRequest, match="one request may have 100") as refusal:
        await prepare(builder, request, NO_CONTRACT)
    assert refusal.value.param == "prompt_logprobs"


async def test_log_probabilities_of_an_answer_in_one_piece_bound_its_length(
    roomy: PromptBuilder,
) -> None:
    most = bounds.MOST_ANSWER_SCORES // (2 * 6)
    open_ended = chat(n=2, logprobs=5)
    assert (await prepare(roomy, open_ended, NO_CONTRACT)).sampling.max_tokens == most
    stated = chat(n=2, logprobs=5, max_tokens=most + 1)
    with pytest.raises(InvalidRequest, match=f"stream it, or lower max_tokens to {most}"):
        await prepare(roomy, stated, NO_CONTRACT)
    streamed = replace(stated, options=Options(stream=True))
    assert (await prepare(roomy, streamed, NO_CONTRACT)).sampling.max_tokens == most + 1
