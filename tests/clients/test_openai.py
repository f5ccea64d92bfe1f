"""OpenAI's Python package: chat, helpers, completions, models, responses, and its errors."""

import json
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
WEATHER_FLAT = {"type": "function", **WEATHER["function"]}


class Ticket(BaseModel):
    title: str
    priority: Literal["low", "high"]
    hours: int


class GetWeather(BaseModel):
    city: str
    days: int


@pytest.fixture
def client(target):
    with OpenAI(base_url=target.base_url, api_key=target.key, max_retries=0) as client:
        yield client


@pytest.fixture
def model(target):
    return target.model


def user(text):
    return [{"role": "user", "content": text}]


def test_a_chat_is_answered_with_its_usage(client, model):
    answer = client.chat.completions.create(model=model, messages=user("hello"))
    assert answer.choices[0].message.content == "You said: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_headers_and_the_body_come_raw_with_a_request_id(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=user("hello"))
    assert raw.request_id
    assert raw.parse().choices[0].message.role == "assistant"


def test_choices_logprobs_and_a_cut_answer(client, model):
    answer = client.chat.completions.create(
        model=model, messages=user("endless"), n=2, max_tokens=7, logprobs=True, top_logprobs=1
    )
    assert [c.finish_reason for c in answer.choices] == ["length", "length"]
    assert all(len(c.logprobs.content) == 7 for c in answer.choices)
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].bytes is not None


def test_a_stream_says_the_same_and_ends_with_usage(client, model):
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=user("one two three"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "You said: one two three"
    assert chunks[-1].usage.completion_tokens > 0
    assert not chunks[-1].choices


async def test_async_streams_run_beside_each_other(target):
    import asyncio

    async with AsyncOpenAI(base_url=target.base_url, api_key=target.key) as client:

        async def one(i):
            stream = await client.chat.completions.create(
                model=target.model, messages=user(f"number {i}"), stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        answers = await asyncio.gather(*(one(i) for i in range(16)))
    assert answers == [f"You said: number {i}" for i in range(16)]


async def test_a_stream_that_is_left_does_no_harm(target):
    async with AsyncOpenAI(base_url=target.base_url, api_key=target.key) as client:
        stream = await client.chat.completions.create(
            model=target.model, messages=user("endless"), stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        answer = await client.chat.completions.create(model=target.model, messages=user("still"))
    assert answer.choices[0].message.content == "You said: still"


def test_parse_gives_the_class_that_was_asked_for(client, model):
    answer = client.beta.chat.completions.parse(
        model=model, messages=user('A high ticket "Printer" of 3 hours'), response_format=Ticket
    )
    assert answer.choices[0].message.parsed == Ticket(title="Printer", priority="high", hours=3)


def test_parse_reads_the_arguments_of_a_call(client, model):
    answer = client.chat.completions.parse(
        model=model,
        messages=user('GetWeather of "Rome" for 3 days'),
        tools=[openai.pydantic_function_tool(GetWeather)],
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetWeather(city="Rome", days=3)


def test_parse_says_that_an_answer_was_cut(client, model):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=model, messages=user("A ticket"), response_format=Ticket, max_tokens=4
        )


def test_the_stream_helper_gathers_text_and_parses_it(client, model):
    with client.chat.completions.stream(
        model=model,
        messages=user('A low ticket "Mouse" of 2 hours'),
        response_format=Ticket,
        stream_options={"include_usage": True},
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.parsed == Ticket(title="Mouse", priority="low", hours=2)
    assert final.usage.completion_tokens > 0


def test_the_stream_helper_gathers_calls_and_logprobs(client, model):
    with client.chat.completions.stream(
        model=model, messages=user('get_weather of "Rome" for 2 days'), tools=[WEATHER]
    ) as stream:
        kinds = {event.type for event in stream}
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert json.loads(call.function.arguments) == {"city": "Rome", "days": 2}
    with client.chat.completions.stream(
        model=model, messages=user("hello"), logprobs=True
    ) as stream:
        assert "logprobs.content.done" in {event.type for event in stream}


def test_a_tool_loop_goes_round(client, model):
    messages = user('get_weather of "Rome" for 2 days')
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=[WEATHER], tool_choice="auto"
    )
    message = answer.choices[0].message
    for call in message.tool_calls:
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        messages = [*messages, message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "You said: sunny"
    # The message may go back as the object that it is, nulls and all.
    messages = [messages[0], message, messages[-1]]
    again = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER])
    assert again.choices[0].message.content == "You said: sunny"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_that_must_be_made_is_made(client, model, choice):
    answer = client.chat.completions.create(
        model=model, messages=user("hello"), tools=[WEATHER], tool_choice=choice
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_completions_of_texts_and_token_ids(client, model):
    answer = client.completions.create(model=model, prompt=["abc", "def"], n=2, max_tokens=40)
    texts = [c.text for c in sorted(answer.choices, key=lambda c: c.index)]
    assert texts == ["You said: abc", "You said: abc", "You said: def", "You said: def"]
    answer = client.completions.create(model=model, prompt=[64, 65], max_tokens=3, logprobs=1)
    assert len(answer.choices[0].logprobs.tokens) == 3


def test_completions_stream(client, model):
    stream = client.completions.create(model=model, prompt="abc", max_tokens=40, stream=True)
    assert "".join(c.choices[0].text for c in stream) == "You said: abc"


def test_models_are_listed_and_fetched(client, model):
    listed = [card.id for card in client.models.list()]
    assert model in listed
    assert client.models.retrieve(model).id == model


def test_each_error_is_the_class_of_its_status(client, target, model):
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="nobody", messages=user("hello"))
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model=model, messages=user("x" * 20_000))
    assert found.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model=model, messages=user("hello"), temperature=11)
    assert found.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="hello")


# The Responses API.


def test_a_response_has_text_and_usage(client, model):
    response = client.responses.create(model=model, input="hello", instructions="Be brief.")
    assert response.output_text == "You said: hello"
    assert response.status == "completed"
    assert response.usage.total_tokens > 0


def test_a_response_streams_by_the_create_call(client, model):
    events = list(client.responses.create(model=model, input="one two", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == "You said: one two"
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_a_response_is_parsed(client, model):
    response = client.responses.parse(
        model=model, input='A high ticket "Printer" of 3 hours', text_format=Ticket
    )
    assert response.output_parsed == Ticket(title="Printer", priority="high", hours=3)


def test_the_responses_stream_helper_gathers_and_parses(client, model):
    with client.responses.stream(
        model=model, input='A high ticket "Printer" of 3 hours', text_format=Ticket
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.output_text.done" in kinds
    assert final.output_parsed == Ticket(title="Printer", priority="high", hours=3)


def test_a_response_with_reasoning(client, model):
    response = client.responses.create(model=model, input="think hello")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    with client.responses.stream(model=model, input="think hello") as stream:
        kinds = [event.type for event in stream]
        assert [i.type for i in stream.get_final_response().output] == ["reasoning", "message"]
    assert "response.reasoning_text.delta" in kinds


def test_a_responses_tool_loop_goes_round(client, model):
    asked = [{"role": "user", "content": 'get_weather of "Rome" for 2 days'}]
    first = client.responses.create(model=model, input=asked, tools=[WEATHER_FLAT])
    [call] = first.output
    assert json.loads(call.arguments) == {"city": "Rome", "days": 2}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = client.responses.create(
        model=model, input=[*asked, *first.output, result], tools=[WEATHER_FLAT]
    )
    assert second.output_text == "You said: sunny"


def test_a_streamed_response_with_a_call(client, model):
    with client.responses.stream(
        model=model,
        input='GetWeather of "Rome" for 3 days',
        tools=[openai.pydantic_function_tool(GetWeather)["function"] | {"type": "function"}],
    ) as stream:
        kinds = [event.type for event in stream]
        [call] = stream.get_final_response().output
    assert "response.function_call_arguments.delta" in kinds
    assert json.loads(call.arguments) == {"city": "Rome", "days": 3}


def test_a_cut_response_is_incomplete(client, model):
    response = client.responses.create(model=model, input="endless", max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_responses_async(target):
    async with AsyncOpenAI(base_url=target.base_url, api_key=target.key) as client:
        response = await client.responses.create(model=target.model, input="hello")
        assert response.output_text == "You said: hello"
        async with client.responses.stream(model=target.model, input="hello") as stream:
            async for _ in stream:
                pass
            assert (await stream.get_final_response()).output_text == "You said: hello"
