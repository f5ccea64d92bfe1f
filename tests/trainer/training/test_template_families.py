"""Rows of each family's chats: what is learnt, and behind which prompt the server asks for it."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from loragate.adapters.format.manifest import Contract
from loragate.adapters.rendering.renderer import IGNORED, Renderer, Supervised
from loragate.adapters.rendering.templates import Templates
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import ChatRequest, Tool
from loragate.server.core import Message as Sent
from loragate.server.core import ToolCall as Call
from loragate.server.gateway.prompting import PromptBuilder
from loragate.trainer.data.example import Example, Message, ToolCall
from loragate.trainer.training.encoding import Encoder
from support.engines.echo_engine import TINY_MODEL
from support.models.chat_families import FAMILIES, Family

ONE = Example((Message("user", "Which queue?"), Message("assistant", "billing")))
MANY = Example((Message("user", "Hi"), Message("assistant", "Hello"), *ONE.messages))
SYSTEM = Example((Message("system", "Be brief."), *MANY.messages))
CALL = Message("assistant", "", calls=(ToolCall("find", '{"city": "Bern"}', "call-1"),))
RESULT = Message("tool", '{"lat": 46.9}', call_id="call-1")
FIND = {
    "name": "find",
    "description": "Finds a place.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOLS = Example(
    (Message("user", "How far?"), CALL, RESULT, Message("assistant", "It is 3 km.")),
    tools=json.dumps([{"type": "function", "function": FIND}]),
)
TOOLS_AND_SYSTEM = TOOLS.with_system_prompt("Be brief.")
SAID = {True: "yes", False: "no"}
ROOT = Path(__file__).parents[3]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    with Templates() as templates:
        yield templates


def rows_of(renderer: Renderer, example: Example) -> tuple[Supervised, ...]:
    return Encoder(renderer, 100_000).rows_of(example)


def learnt_turns(row: Supervised) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where each turn begins, and its tokens."""
    start = 0
    while start < len(row.labels):
        end = start
        while end < len(row.labels) and row.labels[end] != IGNORED:
            end += 1
        if end > start:
            yield start, row.labels[start:end]
        start = end + 1


def sent_turn(turn: Message) -> Sent:
    calls = tuple(Call(call.id, call.name, call.arguments) for call in turn.calls)
    reasoning, call_id = turn.reasoning or None, turn.call_id or None
    return Sent(turn.role, turn.content, None, calls, call_id, reasoning)


def served(
    renderer: Renderer, family: Family, example: Example, before: int, templates: Templates
) -> list[int]:
    """The ids of the server's prompt for the answer that follows so many of the messages."""
    sent = tuple(map(sent_turn, example.messages[:before]))
    functions = [cast(dict[str, Any], tool["function"]) for tool in example.tool_list()]
    tools = tuple(
        Tool(each["name"], each["description"], json.dumps(each["parameters"]))
        for each in functions
    )
    contract = Contract(chat_template_kwargs=dict(family.variables))
    model = replace(TINY_MODEL, max_model_len=100_000, vocab_size=len(renderer.tokenizer))
    # A server's renderer knows of no run: variables come with the contract.
    builder = PromptBuilder(Renderer(renderer.tokenizer), model, FairThreads(), templates)
    prepared = asyncio.run(builder.prepare(ChatRequest("m", sent, tools=tools), contract, "acme"))
    return list(prepared.prompt_ids[0])


def learnt_text(family: Family, example: Example) -> list[str]:
    renderer = family.renderer()
    found = [turn for row in rows_of(renderer, example) for turn in learnt_turns(row)]
    return [renderer.decode(ids) for _, ids in found]


@families
@pytest.mark.parametrize("example", [ONE, MANY, SYSTEM], ids=["one", "many", "system"])
def test_each_answer_and_its_end_are_learnt_behind_the_prompt_that_the_server_sends(
    family: Family, example: Example, templates: Templates
) -> None:
    renderer = family.renderer()
    found = [turn for row in rows_of(renderer, example) for turn in learnt_turns(row)]
    said = [renderer.decode(ids) for _, ids in found]
    answers = [turn.content for turn in example.messages if turn.role == "assistant"]
    assert said == [f"{family.before}{answer}{family.space}{family.end}" for answer in answers]
    assert_served_alike(family, example, templates)


def assert_served_alike(family: Family, example: Example, templates: Templates) -> None:
    """Each turn that is learnt stands behind the prompt with which the server asks for it."""
    renderer = family.renderer()
    turns = [n for n, turn in enumerate(example.messages) if turn.role == "assistant"]
    starts = [
        list(row.input_ids[:start])
        for row in rows_of(renderer, example)
        for start, _ in learnt_turns(row)
    ]
    assert starts == [served(renderer, family, example, turn, templates) for turn in turns]


@families
@pytest.mark.parametrize("example", [TOOLS, TOOLS_AND_SYSTEM], ids=["tools", "system"])
def test_calls_of_tools_and_answers_from_their_results_are_learnt(
    family: Family, example: Example, templates: Templates
) -> None:
    renderer = family.renderer()
    found = [turn for row in rows_of(renderer, example) for turn in learnt_turns(row)]
    call, answer = (renderer.decode(ids) for _, ids in found)
    assert "find" in call
    assert "Bern" in call
    assert call.endswith(family.call_end or family.end)
    assert "It is 3 km." in answer
    assert answer.endswith(family.end)
    read = renderer.decode(rows_of(renderer, example)[-1].input_ids)
    assert "Finds a place." in read
    assert "46.9" in read
    assert_served_alike(family, example, templates)


@families
def test_an_answer_that_is_not_to_be_learnt_is_only_read(family: Family) -> None:
    question, bad, *others = MANY.messages
    renderer = family.renderer()
    rows = rows_of(renderer, Example((question, replace(bad, is_learnt=False), *others)))
    found = [renderer.decode(ids) for row in rows for _, ids in learnt_turns(row)]
    assert found == [f"{family.before}billing{family.space}{family.end}"]
    assert "Hello" in renderer.decode(rows[0].input_ids)


def test_a_developer_is_who_the_template_says_in_training_as_in_serving(
    templates: Templates,
) -> None:
    example = Example((Message("developer", "Be brief."), *ONE.messages))
    for family in FAMILIES:
        assert "Be brief." in family.renderer().decode(
            rows_of(family.renderer(), example)[0].input_ids
        )
        assert_served_alike(family, example, templates)


@families
def test_a_system_message_is_never_lost(family: Family) -> None:
    renderer = family.renderer()
    assert "Be brief." in renderer.decode(rows_of(renderer, SYSTEM)[-1].input_ids)


def test_the_documented_table_is_what_is_shown_here(templates: Templates) -> None:
    def is_right(family: Family, example: Example) -> bool:
        said = "".join(learnt_text(family, example))
        answers = [turn for turn in example.messages if turn.role == "assistant"]
        texts = (text for turn in answers for text in (turn.content, *(c.name for c in turn.calls)))
        return all(text in said for text in texts) and said.endswith(family.end)

    def is_served(family: Family) -> bool:
        for example in (ONE, MANY, SYSTEM, TOOLS, TOOLS_AND_SYSTEM):
            assert_served_alike(family, example, templates)
        return True

    rows = [
        (family.title, *(is_right(family, each) for each in (ONE, MANY, TOOLS)), is_served(family))
        for family in FAMILIES
    ]
    table = [f"| {title} | {' | '.join(SAID[each] for each in shown)} |" for title, *shown in rows]
    text = (ROOT / "docs" / "training.md").read_text()
    documented = [line for line in text.splitlines() if line.count("|") == 6 and "yes" in line]
    assert documented == table
