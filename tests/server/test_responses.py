"""`/v1/responses` over the whole gateway, asked by OpenAI's own client."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import (
    ParsedResponseOutputItem,
    Response,
    ResponseOutputItem,
)
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from loragate.server.config import LimitsConfig
from loragate.server.core import Delta, FinishReason, TokenLogprob, ToolCallDelta
from loragate.server.errors import AdapterUnavailable, RequestError
from loragate.server.http.responses_objects import (
    ArgumentsDeltaEvent,
    CallItem,
    Event,
    Item,
    ItemEvent,
    MessageItem,
    ReasoningDeltaEvent,
    TextDeltaEvent,
)
from loragate.server.http.responses_output import Output
from loragate.server.http.responses_requests import ResponsesBody
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.engines.scripted_engine import ScriptedEngine, said
from support.server.small_server import Reply, Served, ServeWith, on_a_socket
from support.waiting import until

RESPONSES = "/v1/responses"
GOOD: dict[str, Any] = {"model": "support", "input": "hi"}
TOOL: Any = {
    "type": "function",
    "name": "get_time",
    "description": "Says what time it is.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
EVENT = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def engine() -> ScriptedEngine:
    model = replace(TINY_MODEL, max_model_len=2048)
    return ScriptedEngine(model, script=said("The", " sun", "."))


@pytest.fixture
def client(served: Served) -> openai.AsyncOpenAI:
    return client_of(served)


def client_of(served: Served, tenant: str = "acme") -> openai.AsyncOpenAI:
    """It checks each answer against OpenAI's types, and asks once."""
    return openai.AsyncOpenAI(
        api_key=served.keys[tenant],
        base_url="http://test/v1",
        http_client=cast(Any, served.client),  # it asks for a client of httpx2, a copy of httpx
        max_retries=0,
        _strict_response_validation=True,
    )


def events(reply: Reply) -> list[dict]:
    """The events of a stream, each of OpenAI's types and with the number that follows."""
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    found: list[dict] = []
    for block in reply.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def refusal_of(reply: Reply, param: str | None) -> str:
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    return error["message"]


# ---- answers


async def test_a_response_is_answered_in_openai_s_form(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(
        model="support",
        input="hi",
        instructions="Be short.",
        metadata={"ticket": "7"},
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=20,
        user="u1",
        store=False,
    )
    assert response.output_text == "The sun."
    assert response.object == "response"
    assert response.id.startswith("resp_")
    assert response.status == "completed"
    assert response.completed_at is not None
    assert response.error is None
    assert response.incomplete_details is None
    assert response.instructions == "Be short."
    assert response.metadata == {"ticket": "7"}
    assert (response.temperature, response.top_p) == (0.5, 0.9)
    assert response.max_output_tokens == 20
    assert response.user == "u1"
    assert response.tool_choice == "auto"
    assert response.tools == []
    assert response.parallel_tool_calls is True
    assert response.truncation == "disabled"
    assert response.text is not None
    assert response.text.to_dict()["format"] == {"type": "text"}
    assert response.to_dict()["store"] is False
    assert response.usage is not None
    assert response.usage.input_tokens == len(served.engine.seen[0].prompt_ids)
    assert response.usage.output_tokens == 3
    assert response.usage.total_tokens == response.usage.input_tokens + 3
    (message,) = response.output
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")


async def test_what_is_not_said_is_what_openai_s_would_be(served: Served) -> None:
    silent = (await served.post(RESPONSES, GOOD)).json()
    fields = set(ResponsesBody.model_fields) - set(GOOD)
    nulls = (await served.post(RESPONSES, GOOD | dict.fromkeys(fields))).json()
    for body in (silent, nulls):
        for field in ("id", "created_at", "completed_at", "output"):
            del body[field]
    assert nulls == silent
    assert served.engine.seen[0].sampling == served.engine.seen[1].sampling


async def test_a_response_says_which_weights_gave_it_and_is_recorded(served: Served) -> None:
    for stream in (False, True):
        reply = await served.post(RESPONSES, GOOD | {"stream": stream})
        assert reply.headers["x-loragate-adapter"] == "acme/support@v1"
    await until(lambda: len(served.registry.usage.list()) == 2, 3)
    assert {(row.completion_tokens, row.outcome) for row in served.registry.usage.list()} == {
        (3, "ok")
    }


async def test_a_response_says_how_it_ended(
    served: Served, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    engine.script = said("The", " sun", finish_reason="length")
    response = await client.responses.create(model="support", input="hi", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert message.type == "message"
    assert message.status == "incomplete"
    assert response.output_text == "The sun"
    last = events(await served.post(RESPONSES, GOOD | {"stream": True}))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}

    engine.script = said("The", finish_reason="abort")
    body = (await served.post(RESPONSES, GOOD)).json()
    assert (body["status"], body["error"]["code"]) == ("failed", "server_error")
    last = events(await served.post(RESPONSES, GOOD | {"stream": True}))[-1]
    assert last["type"] == "response.failed"

    engine.script = [Delta(index=0, token_ids=(2,), finish_reason="stop")]
    response = await client.responses.create(model="support", input="hi")
    assert (response.status, response.output_text) == ("completed", "")
    assert len(response.output) == 1


async def test_text_is_parsed_into_a_model(
    engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    class Place(BaseModel):
        city: str

    engine.script = said('{"city":', ' "Ulm"}')
    response = await client.responses.parse(model="support", input="hi", text_format=Place)
    assert response.output_parsed == Place(city="Ulm")
    structured = engine.seen[0].sampling.structured
    assert structured is not None
    assert structured.kind == "json_schema"
    assert json.loads(structured.value)["required"] == ["city"]
    async with client.responses.stream(model="support", input="hi", text_format=Place) as stream:
        assert (await stream.get_final_response()).output_parsed == Place(city="Ulm")
    await client.responses.create(
        model="support", input="hi", text={"format": {"type": "json_object"}}
    )
    structured = engine.seen[-1].sampling.structured
    assert structured is not None
    assert structured.kind == "json_object"


SCORES: Sequence[tuple[str, str, FinishReason | None]] = (
    ("ä", "", None),
    ("b", "äb", None),
    ("<end>", "", "stop"),
)
SCORED = [
    Delta(
        index=0,
        text=text,
        token_ids=(5,),
        logprobs=(TokenLogprob(token, 5, -0.5, (TokenLogprob(token, 5, -0.5),)),),
        finish_reason=reason,
    )
    # Of the first token the text comes with the second; the last one ends the answer.
    for token, text, reason in SCORES
]


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_are_those_of_the_text(
    served: Served, engine: ScriptedEngine, stream: bool
) -> None:
    engine.script = SCORED
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "stream": stream}
    reply = await served.post(RESPONSES, GOOD | asked)
    if stream:
        found = events(reply)
        deltas = [event for event in found if event["type"] == "response.output_text.delta"]
        assert [[one["token"] for one in event["logprobs"]] for event in deltas] == [["ä", "b"]]
        response = found[-1]["response"]
    else:
        response = reply.json()
    (message,) = Response.model_validate(response, strict=True).output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    first, second = part.logprobs or []
    assert (first.token, second.token) == ("ä", "b")
    assert bytes(first.bytes).decode() == "ä"
    assert first.top_logprobs[0].logprob == -0.5
    assert engine.seen[0].sampling.logprobs == 1


async def test_a_stream_of_more_log_probabilities_than_are_kept_is_refused(
    serve_with: ServeWith, engine: ScriptedEngine
) -> None:
    engine.model = replace(engine.model, max_model_len=200_000)
    asked = {
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 5,
        "stream": True,
        "max_output_tokens": 100_000,
    }
    async with serve_with() as served:
        message = refusal_of(await served.post(RESPONSES, GOOD | asked), "max_output_tokens")
        assert "stream it" not in message
        assert "lower max_output_tokens to" in message


# ---- streams


async def test_a_stream_has_openai_s_events_in_their_order(served: Served) -> None:
    found = events(await served.post(RESPONSES, GOOD | {"stream": True}))
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert found[2]["item"]["content"] == []
    assert found[3]["part"]["text"] == ""
    assert len({e["item_id"] for e in found if "item_id" in e} | {found[2]["item"]["id"]}) == 1
    assert len({event["response"]["id"] for event in found if "response" in event}) == 1
    assert found[-1]["response"]["usage"]["output_tokens"] == 3


async def test_a_streamed_response_is_the_same_as_one_that_is_not(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.script = CALLS
    whole = await client.responses.create(model="support", input="hi", tools=[TOOL])
    async with client.responses.stream(model="support", input="hi", tools=[TOOL]) as stream:
        types = [event.type async for event in stream]
        streamed = await stream.get_final_response()
    assert types[-1] == "response.completed"

    assert [told(item) for item in streamed.output] == [told(item) for item in whole.output]
    assert len(whole.output) == 4


def told(
    item: "ResponseOutputItem | ParsedResponseOutputItem[None]",
) -> tuple[str, str | None, str]:
    match item.type:
        case "message":
            (part,) = item.content
            return item.type, item.status, part.text if part.type == "output_text" else ""
        case "function_call":
            return item.call_id, item.status, item.arguments
        case unknown:
            raise AssertionError(unknown)


async def test_a_stream_that_fails_says_how_far_it_came_and_raises(
    served: Served, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    engine.script = said("The", " sun")[:1]
    engine.failure = RequestError("The answer cannot go on.")
    *_, failed, error = events(await served.post(RESPONSES, GOOD | {"stream": True}))
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "server_error"
    (message,) = failed["response"]["output"]
    assert (message["status"], message["content"][0]["text"]) == ("incomplete", "The")
    assert error["type"] == "error"
    assert (error["code"], error["message"]) == ("request_failed", "The answer cannot go on.")
    seen: list[str] = []
    with pytest.raises(openai.APIError, match="cannot go on"):  # noqa: PT012
        async for event in await client.responses.create(**GOOD, stream=True):
            seen.append(event.type)
    assert seen[-1] == "response.failed"


async def test_what_fails_before_the_first_word_has_a_status(
    served: Served, engine: ScriptedEngine
) -> None:
    engine.script, engine.failure = (), AdapterUnavailable("It is too large.")
    for stream in (False, True):
        reply = await served.post(RESPONSES, GOOD | {"stream": stream})
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "adapter_unavailable"


# ---- function calls


def call(index: int, *pieces: str, name: str = "get_time") -> list[Delta]:
    first, *others = pieces
    begun = ToolCallDelta(index, f"call-{index}", name, first)
    return [
        Delta(index=0, token_ids=(5,), tool_calls=(piece,))
        for piece in (begun, *(ToolCallDelta(index, arguments=text) for text in others))
    ]


CALLS = [
    Delta(index=0, text="I look", token_ids=(5,)),
    Delta(index=0, text=" it up.", token_ids=(5,)),
    *call(0, '{"city":', ' "Ulm"}'),
    *call(1, "", '{"city": "Bonn"}'),
    Delta(index=0, text="Done.", token_ids=(5,)),
    Delta(index=0, token_ids=(2,), finish_reason="stop"),
]


async def test_tools_go_round(
    served: Served, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    engine.script = [*call(0, '{"city": "Ulm"}'), *said("")]
    asked: list = [{"role": "user", "content": "What time is it in Ulm?"}]
    response = await client.responses.create(model="support", input=asked, tools=[TOOL])
    (made,) = response.output
    assert made.type == "function_call"
    assert (made.name, made.call_id, made.arguments) == ("get_time", "call-0", '{"city": "Ulm"}')
    assert response.status == "completed"
    asked += [item.to_dict() for item in response.output]
    asked.append({"type": "function_call_output", "call_id": made.call_id, "output": "noon"})
    engine.script = said("Noon.")
    again = await client.responses.create(model="support", input=asked, tools=[TOOL])
    assert again.output_text == "Noon."
    user, assistant, tool = engine.asked[-1].messages
    assert (user.role, assistant.role, tool.role) == ("user", "assistant", "tool")
    assert [(c.id, c.name) for c in assistant.tool_calls] == [("call-0", "get_time")]
    assert (tool.tool_call_id, tool.content) == ("call-0", "noon")
    asked += [item.to_dict() for item in again.output]
    asked.append({"role": "user", "content": "Thanks."})
    assert (await client.responses.create(model="support", input=asked)).output_text == "Noon."


async def test_calls_are_streamed_beside_text(served: Served, engine: ScriptedEngine) -> None:
    engine.script = CALLS
    body = GOOD | {"tools": [TOOL], "stream": True}
    found = events(await served.post(RESPONSES, body))
    pieces = {}
    for event in found:
        if event["type"] == "response.function_call_arguments.delta":
            pieces.setdefault(event["output_index"], []).append(event["delta"])
    assert pieces == {1: ['{"city":', ' "Ulm"}'], 2: ['{"city": "Bonn"}']}
    done = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == ['{"city": "Ulm"}', '{"city": "Bonn"}']
    items = found[-1]["response"]["output"]
    assert [item["type"] for item in items] == [
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    assert len({item["id"] for item in items}) == 4


async def test_a_tool_can_be_chosen(served: Served, engine: ScriptedEngine) -> None:
    date = {"type": "function", "name": "get_date"}
    for choice, kind, tools in (
        ("required", "required", ["get_time", "get_date"]),
        (date, "named", ["get_time", "get_date"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [date]}, "required", ["get_date"]),
    ):
        both = [TOOL, TOOL | date]
        reply = await served.post(RESPONSES, GOOD | {"tools": both, "tool_choice": choice})
        assert reply.status_code == 200, reply.text
        assert reply.json()["tool_choice"] == choice
        assert len(reply.json()["tools"]) == 2
        asked = engine.asked[-1]
        assert asked.tool_choice is not None
        assert asked.tool_choice.kind == kind
        assert [tool.name for tool in asked.tools] == tools
    assert (await served.post(RESPONSES, GOOD | {"tool_choice": "auto"})).status_code == 200


async def test_reasoning_is_an_item_of_its_own(served: Served, engine: ScriptedEngine) -> None:
    engine.script = [
        Delta(index=0, token_ids=(5,)),
        Delta(index=0, reasoning="It is", token_ids=(5,)),
        Delta(index=0, reasoning=" day.", token_ids=(5,)),
        *said("Noon."),
    ]
    found = events(await served.post(RESPONSES, GOOD | {"stream": True}))
    assert [e["delta"] for e in found if e["type"] == "response.reasoning_text.delta"] == [
        "It is",
        " day.",
    ]
    response = Response.model_validate(found[-1]["response"], strict=True)
    thought, message = response.output
    assert thought.type == "reasoning"
    assert [part.text for part in thought.content or ()] == ["It is day."]
    assert message.type == "message"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    back = [item.to_dict() for item in response.output]
    assert (await served.post(RESPONSES, GOOD | {"input": back})).status_code == 200


# ---- what the model reads


async def messages_of(served: Served, **body: object) -> list[tuple[str, str | None]]:
    """What the model is given; a tool is offered so that the engine sees the messages."""
    reply = await served.post(RESPONSES, {"model": "support", "tools": [TOOL], **body})
    assert reply.status_code == 200, reply.text
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    return [(message.role, message.content) for message in engine.asked[-1].messages]


async def test_input_is_the_same_prompt_as_chat_s_messages(served: Served) -> None:
    await served.post(RESPONSES, GOOD | {"instructions": "Be short."})
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hi"},
    ]
    await served.post("/v1/chat/completions", {"model": "support", "messages": messages})
    assert served.engine.seen[0].prompt_ids == served.engine.seen[1].prompt_ids


async def test_items_of_every_kind_become_messages(served: Served) -> None:
    items = [
        {"role": "developer", "content": "Use metres."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "How far?"}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "I ", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "cannot say."},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        {"type": "function_call", "call_id": "a", "name": "get_time", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "b", "output": "2"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "1"}],
        },
    ]
    assert await messages_of(served, input=items, instructions="Be short.") == [
        ("system", "Be short.\n\nUse metres."),
        ("user", "How far?"),
        ("assistant", "I \ncannot say."),  # parts, joined as those of a chat
        ("tool", "2"),
        ("tool", "1"),
    ]
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    assert [call.id for call in engine.asked[-1].messages[2].tool_calls] == ["a", "b"]


def thought(text: str | None, **more: object) -> dict[str, object]:
    content = [{"type": "reasoning_text", "text": text}] if text else None
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content, **more}


CALL = {"type": "function_call", "call_id": "a", "name": "get_time", "arguments": "{}"}
SUMMARY = [{"type": "summary_text", "text": "short"}, {"type": "summary_text", "text": "er"}]


@pytest.mark.parametrize(
    ("items", "thoughts"),
    [
        ([thought("hm"), CALL], ["hm"]),
        ([thought("hm"), {"role": "assistant", "content": "ok"}, CALL], ["hm"]),
        ([{"role": "assistant", "content": "ok"}, thought("hm"), CALL], ["hm"]),
        ([thought("hm"), {"role": "assistant", "content": "ok"}, thought("so"), CALL], ["hm\nso"]),
        ([thought("one"), thought("two"), CALL], ["one\ntwo"]),
        ([thought(None, summary=SUMMARY), CALL], ["short\ner"]),
        ([thought("hm", summary=SUMMARY), CALL], ["hm"]),
        ([thought(None, encrypted_content="x"), CALL], [None]),
        ([thought("lost"), {"role": "user", "content": "and?"}, CALL], [None]),
        ([CALL, thought("lost")], [None]),
    ],
)
async def test_thoughts_go_back_with_what_they_came_before(
    served: Served, items: list[dict[str, object]], thoughts: list[str | None]
) -> None:
    body = {"input": [{"role": "user", "content": "hi"}, *items], "tools": [TOOL]}
    reply = await served.post(RESPONSES, GOOD | body)
    assert reply.status_code == 200, reply.text
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    turns = [m for m in engine.asked[-1].messages if m.role == "assistant"]
    assert [turn.reasoning for turn in turns] == thoughts


@pytest.mark.parametrize("effort", [None, "none", "minimal", "low", "medium", "high", "xhigh"])
async def test_the_effort_of_thinking_is_the_template_s_to_follow(
    served: Served, effort: str | None
) -> None:
    await served.post(RESPONSES, GOOD | {"tools": [TOOL], "reasoning": {"effort": effort}})
    await served.chat(reasoning_effort=effort, tools=[{"type": "function", "function": TOOL}])
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    said = {"reasoning_effort": effort, "enable_thinking": effort != "none"} if effort else {}
    assert [asked.template_kwargs for asked in engine.asked] == [said, said]


async def test_what_a_client_says_to_the_template_itself_goes_before_the_effort(
    served: Served,
) -> None:
    body = {"reasoning": {"effort": "high"}, "chat_template_kwargs": {"enable_thinking": False}}
    await served.post(RESPONSES, GOOD | {"tools": [TOOL], **body})
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    assert engine.asked[-1].template_kwargs["enable_thinking"] is False


async def test_a_whole_number_may_be_written_as_many_languages_do(served: Served) -> None:
    numbers: dict[str, object] = {"max_output_tokens": 20.0, "top_k": 4.0, "seed": 7.0}
    numbers |= {"priority": 0.0, "max_tool_calls": 2.0, "top_logprobs": 1.0}
    numbers |= {"stop_token_ids": [5.0], "include": ["message.output_text.logprobs"]}
    reply = await served.post(RESPONSES, GOOD | numbers)
    assert reply.status_code == 200, reply.text
    assert reply.json()["max_output_tokens"] == 20
    sampling = served.engine.seen[0].sampling
    assert (sampling.top_k, sampling.seed, sampling.stop_token_ids) == (4, 7, (5,))


@pytest.mark.parametrize("field", ["max_output_tokens", "top_k", "seed", "top_logprobs"])
@pytest.mark.parametrize("value", [4.5, "4", True])
async def test_what_is_no_whole_number_is_refused(
    served: Served, field: str, value: object
) -> None:
    refusal_of(await served.post(RESPONSES, GOOD | {field: value}), field)


async def test_vllm_s_additions_have_the_effect_that_they_have_on_a_chat(served: Served) -> None:
    body = {"logit_bias": {"5": -1}, "structured_outputs": {"regex": "a+"}, "request_id": "r"}
    reply = await served.post(RESPONSES, GOOD | body)
    assert reply.status_code == 200, reply.text
    sampling = served.engine.seen[0].sampling
    assert sampling.logit_bias == {5: -1}
    assert sampling.structured is not None
    assert sampling.structured.value == "a+"


async def test_a_long_input_is_cut_where_truncation_is_auto(served: Served) -> None:
    long = GOOD | {"input": "x " * 850, "max_output_tokens": 500}
    message = refusal_of(await served.post(RESPONSES, long), "max_output_tokens")
    assert "max_tokens" not in message.replace("max_output_tokens", "")
    reply = await served.post(RESPONSES, long | {"truncation": "auto"})
    assert reply.status_code == 200, reply.text
    assert len(served.engine.seen[0].prompt_ids) == 2048 - 500


# ---- what is refused


BAD: Sequence[tuple[dict, str, str]] = [
    ({"store": True}, "store", "set store to false"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation as input"),
    ({"conversation": "conv_1"}, "conversation", "whole conversation as input"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "whole conversation as input"),
    ({"background": True}, "background", "stream"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions and input"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
    ({"tools": [TOOL, {"type": "mcp", "server_label": "x"}]}, "tools[1].type", "'mcp'"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice", "'file_search'"),
    ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}},
        "tool_choice",
        "'other'",
    ),
    ({"include": ["file_search_call.results"]}, "include", "leave it out"),
    ({"top_logprobs": 2}, "include", "message.output_text.logprobs"),
    ({"input": []}, "input", "empty"),
    ({"input": ""}, "input", "empty"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "store is false"),
    ({"input": [{"id": "msg_1"}]}, "input[0]", "store is false"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "web_search_call"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "function_call_output"),
    ({"input": [{"content": "x"}]}, "input[0].role", "missing"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing"),
    (
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
            ]
        },
        "input[0].content[0]",
        "text only",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "a", "output": "1"}]},
        "input[0].call_id",
        "whole conversation",
    ),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}, "x": 1}}}, "text.format.x", "x"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens has to be"),
    ({"max_tokens": 5}, "max_tokens", "no parameter"),
    ({"messages": []}, "messages", "use input"),
    ({"response_format": {"type": "text"}}, "response_format", "use text.format"),
    ({"enable_response_messages": True}, "enable_response_messages", "/tokenize"),
    ({"kv_transfer_params": {}}, "kv_transfer_params", "leave it out"),
    ({"reasoning": {"effort": "extra"}}, "reasoning.effort", "'max'"),
    ({"stream": False, "stream_options": {}}, "stream_options", "set to true"),
    ({"top_logprobs": 9, "include": ["message.output_text.logprobs"]}, "top_logprobs", "top_logp"),
    ({"temperature": 99}, "temperature", "temperature"),
    ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ({"stream": "yes"}, "stream", "bool"),
]


async def test_what_cannot_be_done_is_refused_by_the_field_s_name(served: Served) -> None:
    for body, param, hint in BAD:
        message = refusal_of(await served.post(RESPONSES, GOOD | body), param)
        assert hint in message, body
    assert served.engine.seen == []


async def test_no_response_can_be_fetched_later(served: Served) -> None:
    for method, path in (
        ("GET", "/resp_1"),
        ("GET", "/resp_1/input_items"),
        ("DELETE", "/resp_1"),
        ("POST", "/resp_1/cancel"),
    ):
        reply = await served.client.request(method, RESPONSES + path, headers=served.auth)
        assert reply.status_code == 404
        assert "keeps no responses" in reply.json()["error"]["message"]


async def test_embeddings_are_refused_with_where_to_go(
    client: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError, match="give no embeddings"):
        await client.embeddings.create(model="support", input="hi")


# ---- tenants, limits, and clients that leave


async def test_another_tenant_s_adapter_is_not_there(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client_of(served, "globex").responses.create(**GOOD)
    assert caught.value.code == "model_not_found"
    own = await served.post(f"/t/acme{RESPONSES}", GOOD)
    assert own.status_code == 200


async def test_a_spent_budget_refuses_responses_too(serve_with: ServeWith) -> None:
    async with serve_with(limits=LimitsConfig(requests_per_minute=1)) as served:
        client = client_of(served)
        await client.responses.create(**GOOD)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(**GOOD)
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) > 0


class TestWhileItRuns:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return EchoEngine(replace(TINY_MODEL, max_model_len=2048), pace_seconds=0.02)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_client_that_leaves_frees_the_engine(
        self, served: Served, stream: bool
    ) -> None:
        body = GOOD | {"input": "x" * 900, "max_output_tokens": 900, "stream": stream}
        async with on_a_socket(served) as client:
            asking = asyncio.create_task(client.post(RESPONSES, json=body))
            await until(lambda: bool(served.engine.running), 3)
            asking.cancel()
            await until(lambda: not served.engine.running)
        assert len(served.engine.aborted) == 1
        await until(lambda: bool(served.registry.usage.list()), 3)
        assert served.registry.usage.list()[0].outcome == "cancelled"

    async def test_events_come_as_they_are_made(self, served: Served) -> None:
        body = GOOD | {"input": "x" * 900, "max_output_tokens": 900, "stream": True}
        async with on_a_socket(served) as client:
            async with client.stream("POST", RESPONSES, json=body) as reply:
                async for line in reply.aiter_lines():
                    if line == "event: response.output_text.delta":
                        break
                assert served.engine.running
            await until(lambda: not served.engine.running)


# ---- whatever a model writes


@st.composite
def deltas(draw: st.DrawFn) -> list[Delta]:
    """Text, reasoning and calls in any order; a call's first piece has its id and name."""
    begun: set[int] = set()
    found: list[Delta] = []
    for _ in range(draw(st.integers(0, 8))):
        text = draw(st.text("ab", max_size=2))
        kind = draw(st.sampled_from(["text", "reasoning", "call"]))
        if kind == "call":
            index = draw(st.integers(0, 2))
            is_first = index not in begun
            begun.add(index)
            piece = ToolCallDelta(
                index, f"call-{index}" if is_first else None, "f" if is_first else None, text
            )
            found.append(Delta(index=0, tool_calls=(piece,)))
        else:
            is_text = kind == "text"
            found.append(Delta(index=0, text=text * is_text, reasoning=text * (not is_text)))
    return found


@given(deltas())
def test_the_events_of_an_output_make_up_its_items(written: list[Delta]) -> None:
    output = Output("x", None)
    texts: dict[str, str] = {}
    open_items: set[str] = set()

    def heard(event: Event) -> None:
        match event:
            case ItemEvent(type="response.output_item.added", item=item):
                assert item.status == "in_progress"
                assert item.id not in texts
                texts[item.id] = ""
                open_items.add(item.id)
            case ItemEvent(type="response.output_item.done", item=item):
                open_items.remove(item.id)
                assert item.status == "completed"
                assert content_of(item) == texts[item.id]
            case TextDeltaEvent() | ReasoningDeltaEvent() | ArgumentsDeltaEvent():
                assert event.item_id in open_items
                assert output.items[event.output_index].id == event.item_id
                texts[event.item_id] += event.delta

    for delta in written:
        for event in output.push(delta):
            heard(event)
    for event in output.finish(is_cut=False):
        heard(event)
    assert not open_items
    assert output.items
    texts_said = [content_of(item) for item in output.items if isinstance(item, MessageItem)]
    assert "".join(texts_said) == "".join(delta.text for delta in written)


def content_of(item: Item) -> str:
    return item.arguments if isinstance(item, CallItem) else item.content[0].text
