"""Pydantic AI: agents with tools, and with outputs of each mode, over chats and responses."""

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Ticket(BaseModel):
    title: str
    hours: int


ASKED = 'A final_result Ticket "Printer" of 3 hours'
MEANT = Ticket(title="Printer", hours=3)


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model(request, target):
    provider = OpenAIProvider(base_url=target.base_url, api_key=target.key)
    return request.param(target.model, provider=provider)


async def test_an_agent_answers_and_goes_on_with_its_history(model):
    agent = Agent(model, instructions="Be brief.")
    first = await agent.run("hello")
    assert first.output == "You said: hello"
    second = await agent.run("again", message_history=first.all_messages())
    assert second.output == "You said: again"
    assert second.usage.output_tokens > 0


async def test_an_agent_calls_a_tool(model):
    agent = Agent(model)
    asked = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        asked.append(city)
        return "sunny"

    result = await agent.run('get_weather of "Rome"')
    assert (result.output, asked) == ("You said: sunny", ["Rome"])


@pytest.mark.parametrize(
    "output", [ToolOutput(Ticket), NativeOutput(Ticket)], ids=["tool", "native"]
)
async def test_an_output_is_of_its_class(model, output):
    result = await Agent(model, output_type=output).run(ASKED)
    assert result.output == MEANT


async def test_a_prompted_output_asks_for_an_object(model):
    asked = MEANT.model_dump_json()
    result = await Agent(model, output_type=PromptedOutput(Ticket)).run(asked)
    assert result.output == MEANT


async def test_a_text_streams(model):
    async with Agent(model).run_stream("one two three") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == "You said: one two three"
    assert len(pieces) > 1


async def test_an_output_streams(model):
    async with Agent(model, output_type=ToolOutput(Ticket)).run_stream(ASKED) as stream:
        assert await stream.get_output() == MEANT


async def test_reasoning_is_a_part_of_its_own(model):
    result = await Agent(model).run("think hello")
    parts = [part for m in result.all_messages() for part in m.parts]
    [thought] = [part for part in parts if isinstance(part, ThinkingPart)]
    # Of a response, Pydantic AI shows summaries, and keeps what a model thought beside them.
    kept = (thought.provider_details or {}).get("raw_content", [])
    assert [thought.content or None, *kept].count("I think. ") == 1
    again = await Agent(model).run("again", message_history=result.all_messages())
    assert again.output == "You said: again"
