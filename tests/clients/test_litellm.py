"""LiteLLM as a client: chats, streams, tools, errors, a router with a fallback."""

import json

import litellm
import pytest

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(params=["openai", "hosted_vllm", "litellm_proxy"])
def call(request, target):
    """What each call brings along, for each of the providers that fit."""
    return {
        "model": f"{request.param}/{target.model}",
        "api_base": target.base_url,
        "api_key": target.key,
        "num_retries": 0,
    }


def user(text):
    return [{"role": "user", "content": text}]


def test_a_chat(call):
    answer = litellm.completion(messages=user("hello"), **call)
    assert answer.choices[0].message.content == "You said: hello"
    assert answer.usage.total_tokens > 0


async def test_an_async_stream_with_usage(call):
    stream = await litellm.acompletion(
        messages=user("one two"), stream=True, stream_options={"include_usage": True}, **call
    )
    chunks = [chunk async for chunk in stream]
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content == "You said: one two"
    assert whole.usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_call(call, stream):
    answer = litellm.completion(
        messages=user('get_weather of "Rome"'), tools=[TOOL], stream=stream, **call
    )
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    [made] = answer.choices[0].message.tool_calls
    assert json.loads(made.function.arguments) == {"city": "Rome"}
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning(call, stream):
    answer = litellm.completion(messages=user("think hello"), stream=stream, **call)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    assert answer.choices[0].message.reasoning_content == "I think. "


def test_errors_are_of_their_kind(call):
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=user("x" * 20_000), **call)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=user("hello"), **(call | {"api_key": "wrong"}))
    provider = call["model"].partition("/")[0]
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=user("hello"), **(call | {"model": f"{provider}/nobody"}))


def test_a_context_window_fallback_fires(call):
    mock = {"model": "openai/long", "api_key": "none", "mock_response": "the long one answers"}
    router = litellm.Router(
        model_list=[
            {"model_name": "short", "litellm_params": call},
            {"model_name": "long", "litellm_params": mock},
        ],
        context_window_fallbacks=[{"short": ["long"]}],
        num_retries=0,
    )
    short = router.completion(model="short", messages=user("hello"))
    assert short.choices[0].message.content == "You said: hello"
    answer = router.completion(model="short", messages=user("x" * 20_000))
    assert answer.choices[0].message.content == "the long one answers"


def test_text_completions_and_responses(target):
    call = {"model": f"openai/{target.model}", "api_base": target.base_url, "api_key": target.key}
    text = litellm.text_completion(
        **(call | {"model": f"text-completion-openai/{target.model}"}), prompt="abc", max_tokens=40
    )
    assert text.choices[0].text == "You said: abc"
    response = litellm.responses(input="hello", **call)
    assert response.output[-1].content[0].text == "You said: hello"
