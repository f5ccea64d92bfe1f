"""Instructor in each of its modes that OpenAI's API has."""

from typing import Literal

import instructor
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODES = [
    instructor.Mode.TOOLS,
    instructor.Mode.JSON_SCHEMA,
    instructor.Mode.RESPONSES_TOOLS,
]


class Ticket(BaseModel):
    title: str
    priority: Literal["low", "high"]
    hours: int


ASKED = [{"role": "user", "content": 'A high Ticket "Printer" of 3 hours'}]
MEANT = Ticket(title="Printer", priority="high", hours=3)


@pytest.fixture(params=MODES, ids=str)
def client(request, target):
    openai = OpenAI(base_url=target.base_url, api_key=target.key, max_retries=0)
    return instructor.from_openai(openai, mode=request.param, model=target.model)


def test_a_class_is_filled(client):
    made = client.create(messages=ASKED, response_model=Ticket, max_retries=0)
    assert made.model_dump() == MEANT.model_dump()


def test_a_partial_class_fills_as_it_streams(client):
    *_, last = client.create_partial(messages=ASKED, response_model=Ticket, max_retries=0)
    assert last.model_dump() == MEANT.model_dump()


def test_json_mode(target):
    openai = OpenAI(base_url=target.base_url, api_key=target.key, max_retries=0)
    client = instructor.from_openai(openai, mode=instructor.Mode.JSON, model=target.model)
    asked = [{"role": "user", "content": MEANT.model_dump_json()}]
    made = client.create(messages=asked, response_model=Ticket, max_retries=0)
    assert made.model_dump() == MEANT.model_dump()


async def test_iterables_stream_async(target):
    openai = AsyncOpenAI(base_url=target.base_url, api_key=target.key, max_retries=0)
    client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA, model=target.model)
    made = [t async for t in client.create_iterable(messages=ASKED, response_model=Ticket)]
    assert [ticket.model_dump() for ticket in made] == [MEANT.model_dump()]
