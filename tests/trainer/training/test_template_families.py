"""Rows of each family's chats: what is learnt, and behind which prompt the server asks for it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from loragate.adapters.format.manifest import Contract
from loragate.adapters.rendering.renderer import IGNORED, Renderer, Supervised
from loragate.adapters.rendering.templates import Templates
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import ChatRequest
from loragate.server.core import Message as Sent
from loragate.server.gateway.prompting import PromptBuilder
from loragate.trainer.data.example import Example, Message
from loragate.trainer.training.encoding import Encoder
from support.engines.echo_engine import TINY_MODEL
from support.models.chat_families import FAMILIES, Family

ONE = Example((Message("user", "Which queue?"), Message("assistant", "billing")))
MANY = Example((Message("user", "Hi"), Message("assistant", "Hello"), *ONE.messages))
SYSTEM = Example((Message("system", "Be brief."), *MANY.messages))
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


def served(renderer: Renderer, family: Family, example: Example, templates: Templates) -> list[int]:
    """The ids of the server's prompt for the example's last answer."""
    sent = tuple(Sent(turn.role, turn.content) for turn in example.messages[:-1])
    contract = Contract(chat_template_kwargs=dict(family.variables))
    model = replace(TINY_MODEL, max_model_len=100_000, vocab_size=len(renderer.tokenizer))
    # A server's renderer knows of no run: variables come with the contract.
    builder = PromptBuilder(Renderer(renderer.tokenizer), model, FairThreads(), templates)
    prepared = asyncio.run(builder.prepare(ChatRequest("m", sent), contract, "acme"))
    return list(prepared.prompt_ids[0])


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
    last = rows_of(renderer, example)[-1]
    start, _ = list(learnt_turns(last))[-1]
    assert list(last.input_ids[:start]) == served(renderer, family, example, templates)


@families
def test_a_system_message_is_never_lost(family: Family) -> None:
    renderer = family.renderer()
    assert "Be brief." in renderer.decode(rows_of(renderer, SYSTEM)[-1].input_ids)
