"""LlamaIndex's OpenAILike: chats, completions, streams, tools and structured answers."""

import json

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Ticket(BaseModel):
    title: str
    hours: int


@pytest.fixture
def llm(target):
    return OpenAILike(
        model=target.model,
        api_base=target.base_url,
        api_key=target.key,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
        context_window=16_384,
    )


def user(text):
    return [ChatMessage(role="user", content=text)]


def test_a_chat_and_a_stream(llm):
    assert llm.chat(user("hello")).message.content == "You said: hello"
    *_, last = llm.stream_chat(user("one two"))
    assert last.message.content == "You said: one two"


async def test_async(llm):
    assert (await llm.achat(user("hello"))).message.content == "You said: hello"
    *_, last = [piece async for piece in await llm.astream_chat(user("one two"))]
    assert last.message.content == "You said: one two"


def test_a_completion(llm, target):
    assert llm.complete("hello").text == "You said: hello"
    plain = OpenAILike(
        model=target.model, api_base=target.base_url, api_key=target.key, max_tokens=60
    )
    assert plain.complete("hello").text == "You said: hello"
    *_, last = plain.stream_complete("hello")
    assert last.text == "You said: hello"


def test_a_tool_loop(llm):
    weather = FunctionTool.from_defaults(lambda city: f"sunny in {city}", name="get_weather")
    answer = llm.chat_with_tools([weather], user_msg='get_weather of "Rome"')
    [call] = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather"
    result = ChatMessage(
        role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id}
    )
    history = [*user('get_weather of "Rome"'), answer.message, result]
    last = llm.chat_with_tools([weather], chat_history=history)
    assert last.message.content == "You said: sunny"


def test_streamed_calls(llm):
    weather = FunctionTool.from_defaults(lambda city: f"sunny in {city}", name="get_weather")
    *_, last = llm.stream_chat_with_tools([weather], user_msg='get_weather of "Rome"')
    [call] = llm.get_tool_calls_from_response(last)
    assert json.loads(json.dumps(call.tool_kwargs)).keys() == {"city"}


def test_a_structured_answer(llm):
    prompt = PromptTemplate('A Ticket "{title}" of 3 hours')
    made = llm.structured_predict(Ticket, prompt, title="Printer")
    assert made == Ticket(title="Printer", hours=3)
