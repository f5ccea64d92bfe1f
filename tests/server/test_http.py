"""The HTTP data plane over the whole gateway, with an engine that echoes."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, replace
from importlib import metadata

import httpx
import msgspec
import pytest
import pytest_asyncio
from fastapi import FastAPI
from starlette.routing import Route as StarletteRoute

from loragate.server.config import LimitsConfig, MetricsConfig, ServerConfig
from loragate.server.core import Delta, TokenLogprob
from loragate.server.engine.protocol import EngineRequest
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.server.small_server import SUPPORT, Reply, Served, ServeWith, bearer, on_a_socket
from support.waiting import until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def events(reply: Reply) -> list[dict]:
    """The chunks of a stream, which has to end as OpenAI's do."""
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error_of(reply: Reply, status: int, code: str) -> dict:
    assert reply.status_code == status, reply.text
    (key,) = reply.json()
    error = reply.json()[key]
    assert key == "error"
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["code"] == code
    assert error["message"]
    assert reply.headers["x-request-id"]
    return error


# ---- chat


async def test_a_chat_is_answered_in_openai_s_form(served: Served) -> None:
    reply = await served.chat("hi", max_tokens=3)
    assert reply.status_code == 200
    body = reply.json()
    ids = served.engine.seen[0].prompt_ids[-3:]
    assert body == {
        "id": f"chatcmpl-{reply.headers['x-request-id']}",
        "object": "chat.completion",
        "created": body["created"],
        "model": "support",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "".join(f" t{token}" for token in ids),
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning_content": None,
                },
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": None,
        "kv_transfer_params": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "usage": {
            "prompt_tokens": len(served.engine.seen[0].prompt_ids),
            "completion_tokens": 3,
            "total_tokens": len(served.engine.seen[0].prompt_ids) + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert reply.headers["content-type"] == "application/json"


async def test_an_answer_says_which_weights_gave_it(served: Served) -> None:
    (version,) = served.registry.versions.show(SUPPORT).versions
    for stream in (False, True):
        reply = await served.chat(stream=stream)
        assert reply.headers["x-loragate-adapter"] == "acme/support@v1"
        assert reply.headers["x-loragate-digest"] == version.digest
    assert (await served.chat(model="base")).headers["x-loragate-adapter"] == "base"
    assert served.engine.seen[0].adapter
    assert served.engine.seen[-1].adapter is None


async def test_a_streamed_chat_says_the_same_as_one_that_is_not(served: Served) -> None:
    whole = (await served.chat(max_tokens=4, n=2)).json()
    chunks = events(await served.chat(max_tokens=4, n=2, stream=True))
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in piece["delta"] for piece in mine[1:])
        text = "".join(piece["delta"].get("content", "") for piece in mine)
        assert text == choice["message"]["content"]
        assert [piece["finish_reason"] for piece in mine][-2:] == [None, choice["finish_reason"]]


async def test_usage_comes_last_in_a_stream_that_asks_for_it(served: Served) -> None:
    reply = await served.chat(max_tokens=3, stream=True, stream_options={"include_usage": True})
    *chunks, last = events(reply)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 3


async def test_usage_comes_with_each_chunk_that_asks_for_it(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(await served.chat(max_tokens=3, stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("options", [{"include_usage": False}, {}])
async def test_usage_with_each_chunk_is_for_who_asks_for_usage(
    served: Served, options: dict[str, object]
) -> None:
    options = {**options, "continuous_usage_stats": True}
    chunks = events(await served.chat(max_tokens=3, stream=True, stream_options=options))
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_each_chunk_has_vllm_s_fields_whether_they_say_something_or_not(
    served: Served, path: str
) -> None:
    ask = served.chat if path == CHAT else served.complete
    for asked in (None, True):
        chunks = events(await ask(max_tokens=2, stream=True, return_token_ids=asked))
        for chunk in chunks:
            (choice,) = chunk["choices"]
            assert {"stop_reason", "token_ids", "logprobs", "finish_reason"} <= choice.keys()
            holder = chunk if path == CHAT else choice
            assert "prompt_logprobs" in holder
            is_later = path == CHAT and bool(asked) and chunk is not chunks[0]
            assert ("prompt_token_ids" in holder) is not is_later  # as in vLLM
        first = chunks[0] if path == CHAT else chunks[0]["choices"][0]
        prompt = list(served.engine.seen[-1].prompt_ids)
        assert first["prompt_token_ids"] == (prompt if asked else None)


async def test_a_chat_s_messages_may_come_in_parts(served: Served) -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    await served.chat("he\nllo")
    await served.post(CHAT, {"model": "support", "messages": [{"role": "user", "content": parts}]})
    assert served.engine.seen[0].prompt_ids == served.engine.seen[1].prompt_ids


TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


class TestWithRoomForTools:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return EchoEngine(replace(TINY_MODEL, max_model_len=2048))

    async def test_a_tool_call_is_told_from_text(self, served: Served) -> None:
        body = (await served.chat(max_tokens=2, tools=[TOOL])).json()
        (choice,) = body["choices"]
        ids = served.engine.seen[0].prompt_ids[-2:]
        assert choice["message"] == {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning_content": None,
            "tool_calls": [
                {
                    "id": "call-1",
                    "type": "function",
                    "function": {
                        "name": "get_time",
                        "arguments": "".join(f" t{token}" for token in ids),
                    },
                }
            ],
        }

    async def test_a_tool_call_is_streamed_in_pieces(self, served: Served) -> None:
        chunks = events(await served.chat(max_tokens=2, tools=[TOOL], stream=True))
        pieces = [
            call
            for chunk in chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls", ())
        ]
        assert [piece.get("id") for piece in pieces] == ["call-1", None]
        assert pieces[0]["function"]["name"] == "get_time"
        assert "name" not in pieces[1]["function"]
        assert {piece["index"] for piece in pieces} == {0}

    async def test_tool_choice_none_leaves_text_as_text(self, served: Served) -> None:
        body = (await served.chat(max_tokens=2, tools=[TOOL], tool_choice="none")).json()
        assert "tool_calls" not in body["choices"][0]["message"]


# ---- completions


async def test_a_completion_is_answered_in_openai_s_form(served: Served) -> None:
    reply = await served.complete("abc", max_tokens=2)
    body = reply.json()
    assert body == {
        "id": f"cmpl-{reply.headers['x-request-id']}",
        "object": "text_completion",
        "created": body["created"],
        "model": "base",
        "choices": [
            {
                "index": 0,
                "text": "".join(f" t{token}" for token in served.engine.seen[0].prompt_ids[-2:]),
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": None,
        "kv_transfer_params": None,
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("abc", [3]),
        (["abc", "de"], [3, 2]),
        ([7, 8, 9], [3]),
        ([[7, 8], [9]], [2, 1]),
    ],
)
async def test_a_prompt_may_be_text_or_tokens_one_or_many(
    served: Served, prompt: object, lengths: list[int]
) -> None:
    reply = await served.complete(prompt, max_tokens=1, n=2, temperature=0.5)
    # Each choice is computed by itself.
    assert [len(request.prompt_ids) for request in served.engine.seen] == [
        length for length in lengths for _ in range(2)
    ]
    choices = reply.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(2 * len(lengths)))
    assert reply.json()["usage"]["prompt_tokens"] == sum(lengths)
    for choice in choices:
        ids = served.engine.seen[choice["index"]].prompt_ids
        assert choice["text"] == f" t{ids[-1]}"


async def test_seeds_of_several_answers_follow_each_other_within_the_engine_s_numbers(
    served: Served,
) -> None:
    reply = await served.complete("abc", max_tokens=1, n=3, temperature=0.5, seed=2**63 - 2)
    assert reply.status_code == 200, reply.text
    seeds = [request.sampling.seed for request in served.engine.seen]
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)]


class TestWithBothAskedFor:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return EchoEngine(replace(TINY_MODEL, max_model_len=2048))

    async def test_a_call_that_must_be_made_goes_before_a_response_format(
        self, served: Served
    ) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
        asked = {"tools": [TOOL], "max_tokens": 2, "response_format": schema}
        for choice in ("required", {"type": "function", "function": {"name": "get_time"}}):
            reply = await served.chat(tool_choice=choice, **asked)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["message"]["tool_calls"]
            constraint = served.engine.seen[-1].sampling.structured
            assert constraint is not None
            assert constraint.kind == "json_object"  # what these tools ask for


@pytest.mark.parametrize("prompt", ["abc", [1, 2, 3]])
async def test_echo_puts_the_prompt_before_the_answer(served: Served, prompt: object) -> None:
    whole = await served.complete(prompt, max_tokens=2, echo=True)
    text = whole.json()["choices"][0]["text"]
    plain = (await served.complete(prompt, max_tokens=2)).json()["choices"][0]["text"]
    assert text.endswith(plain)
    assert len(text) == len(plain) + 3
    chunks = events(await served.complete(prompt, max_tokens=2, echo=True, stream=True))
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == text


async def test_a_streamed_completion_says_the_same_as_one_that_is_not(served: Served) -> None:
    whole = (await served.complete(["abc", "de"], max_tokens=3)).json()
    chunks = events(await served.complete(["abc", "de"], max_tokens=3, stream=True))
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


# ---- log-probabilities and token ids


@dataclass
class ScoringEngine(EchoEngine):
    """Echoes with log-probabilities; every other token completes no character."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        asked, first = request.sampling, True
        async for delta in super().generate(request):
            if asked.logprobs is not None:
                delta = msgspec.structs.replace(delta, logprobs=scored(delta.token_ids))
            is_probe = delta.prompt_logprobs is not None
            if first and asked.prompt_logprobs is not None and not is_probe:
                prompt = (None, *scored(request.prompt_ids[1:]))
                delta = msgspec.structs.replace(delta, prompt_logprobs=prompt)
            first = False
            yield delta


@dataclass
class SplitEngine(EchoEngine):
    """Says its text with the last token only, as where a character takes several."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        async for delta in super().generate(request):
            yield delta if delta.finish_reason else msgspec.structs.replace(delta, text="")


def scored(token_ids: Iterable[int]) -> tuple[TokenLogprob, ...]:
    top = tuple(TokenLogprob(f"t{i}", i, -float(i), rank=i) for i in (1, 2, 3))
    return tuple(TokenLogprob(f"t{i}", i, -0.25, top, rank=4) for i in token_ids)


class TestWithScores:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return ScoringEngine()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_chat_s_log_probabilities(self, served: Served, stream: bool) -> None:
        reply = await served.chat(max_tokens=2, logprobs=True, top_logprobs=2, stream=stream)
        if stream:
            pieces = [c["logprobs"] for chunk in events(reply) for c in chunk["choices"]]
            content = [entry for piece in pieces if piece for entry in piece["content"]]
        else:
            content = reply.json()["choices"][0]["logprobs"]["content"]
        ids = served.engine.seen[0].prompt_ids[-2:]
        assert content == [
            {
                "token": f"t{token}",
                "logprob": -0.25,
                "bytes": list(f"t{token}".encode()),
                "top_logprobs": [
                    {"token": "t1", "logprob": -1.0, "bytes": [116, 49]},
                    {"token": "t2", "logprob": -2.0, "bytes": [116, 50]},
                ],
            }
            for token in ids
        ]

    async def test_top_logprobs_of_zero_gives_the_chosen_token_s_alone(
        self, served: Served
    ) -> None:
        reply = await served.chat(max_tokens=1, logprobs=True)
        (entry,) = reply.json()["choices"][0]["logprobs"]["content"]
        assert entry["top_logprobs"] == []

    async def test_a_completion_s_log_probabilities(self, served: Served) -> None:
        reply = await served.complete([7, 8, 9], max_tokens=2, logprobs=3)
        top = {"t1": -1.0, "t2": -2.0, "t3": -3.0}
        logprobs = reply.json()["choices"][0]["logprobs"]
        assert logprobs == {
            "text_offset": [0, 2],
            "token_logprobs": [-0.25, -0.25],
            "tokens": ["t8", "t9"],
            "top_logprobs": [{"t8": -0.25, **top}, {"t9": -0.25, **top}],
        }
        assert [next(iter(each)) for each in logprobs["top_logprobs"]] == ["t8", "t9"]

    async def test_echo_scores_the_prompt_as_well(self, served: Served) -> None:
        reply = await served.complete([65, 8, 9], max_tokens=1, logprobs=1, echo=True)
        logprobs = reply.json()["choices"][0]["logprobs"]
        assert logprobs["tokens"][1:] == ["t8", "t9", "t9"]
        assert logprobs["token_logprobs"] == [None, -0.25, -0.25, -0.25]
        assert logprobs["top_logprobs"][0] is None
        lengths = [len(token) for token in logprobs["tokens"]]
        assert logprobs["text_offset"] == [sum(lengths[:i]) for i in range(4)]

    async def test_tokens_can_be_asked_for_by_their_ids(self, served: Served) -> None:
        reply = await served.complete(
            [7, 8, 9], max_tokens=1, logprobs=1, return_tokens_as_token_ids=True
        )
        assert reply.json()["choices"][0]["logprobs"]["tokens"] == ["token_id:9"]

    async def test_so_can_the_prompt_s_that_are_echoed(self, served: Served) -> None:
        reply = await served.complete(
            [7, 8, 9], max_tokens=1, logprobs=1, return_tokens_as_token_ids=True, echo=True
        )
        logprobs = reply.json()["choices"][0]["logprobs"]
        assert logprobs["tokens"] == [f"token_id:{i}" for i in (7, 8, 9, 9)]
        assert logprobs["text_offset"] == [0, 10, 20, 30]

    @pytest.mark.parametrize("top_logprobs", [None, 0, 1, 3])
    async def test_tokens_named_by_a_request_are_all_reported_beside_the_chosen_one(
        self, served: Served, top_logprobs: int | None
    ) -> None:
        asked = {"logprobs": True, "top_logprobs": top_logprobs, "logprob_token_ids": [2, 3]}
        reply = await served.chat(max_tokens=1, **asked)
        (entry,) = reply.json()["choices"][0]["logprobs"]["content"]
        assert [top["token"] for top in entry["top_logprobs"]] == ["t1", "t2", "t3"]

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_the_prompt_s_log_probabilities_are_streamed_once(
        self, served: Served, path: str
    ) -> None:
        ask = served.chat if path == CHAT else served.complete
        reply = await ask(max_tokens=3, prompt_logprobs=1, stream=True)
        holders = [chunk if path == CHAT else chunk["choices"][0] for chunk in events(reply)]
        (scores,) = [each["prompt_logprobs"] for each in holders if each["prompt_logprobs"]]
        assert len(scores) == len(served.engine.seen[-1].prompt_ids)

    async def test_prompt_log_probabilities_come_in_vllm_s_form(self, served: Served) -> None:
        reply = await served.complete([7, 8], max_tokens=1, prompt_logprobs=1)
        first, second = reply.json()["choices"][0]["prompt_logprobs"]
        assert first is None
        assert second["8"] == {"logprob": -0.25, "rank": 4, "decoded_token": "t8"}
        assert second["1"] == {"logprob": -1.0, "rank": 1, "decoded_token": "t1"}
        assert reply.json()["choices"][0]["logprobs"] is None


class TestWithSplitCharacters:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return SplitEngine()

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_a_stream_has_each_token_id_even_where_it_completes_no_text(
        self, served: Served, path: str
    ) -> None:
        asked = {"max_tokens": 3, "return_token_ids": True, "stream": True}
        reply = await (served.chat if path == CHAT else served.complete)("hello", **asked)
        pieces = [c for chunk in events(reply) for c in chunk["choices"]]
        ids = [token for piece in pieces for token in piece.get("token_ids", ())]
        assert ids == list(served.engine.seen[0].prompt_ids[-3:])


# ---- refusals before the engine

MESSAGES = [{"role": "user", "content": "hi"}]
GOOD = {"model": "support", "messages": MESSAGES}
REFUSED: list[tuple[object, str, str | None]] = [
    ({**GOOD, "temprature": 1}, "unknown_parameter", "temprature"),
    ({**GOOD, "myPart": 1}, "unknown_parameter", "myPart"),
    ({**GOOD, "stream_options": {"usage": True}}, "unknown_parameter", "stream_options.usage"),
    ({**GOOD, "temperature": "1"}, "invalid_type", "temperature"),
    ({**GOOD, "guided_json": {"type": "object"}}, "unsupported_parameter", "guided_json"),
    ({**GOOD, "max_tokens": "4"}, "invalid_type", "max_tokens"),
    ({**GOOD, "stop_token_ids": [1.5]}, "invalid_type", "stop_token_ids[0]"),
    ({**GOOD, "seed": -(2**63) - 1}, "invalid_value", "seed"),
    ({**GOOD, "model": None}, "missing_required_parameter", "model"),
    ({**GOOD, "prompt": "hi"}, "unknown_parameter", "prompt"),
    ({**GOOD, "max_tokens": 1.5}, "invalid_type", "max_tokens"),
    ({**GOOD, "max_tokens": 10**400}, "invalid_value", "max_tokens"),
    ({**GOOD, "n": True}, "invalid_type", "n"),
    ({**GOOD, "messages": "hi"}, "invalid_type", "messages"),
    ({**GOOD, "messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
    ({**GOOD, "messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
    ({**GOOD, "messages": []}, "invalid_value", "messages"),
    ({**GOOD, "messages": [{"role": "boss", "content": ""}]}, "invalid_value", "messages[0].role"),
    ({"messages": MESSAGES}, "missing_required_parameter", "model"),
    ({**GOOD, "max_tokens": 0}, "invalid_value", "max_tokens"),
    ({**GOOD, "max_tokens": 5000}, "context_length_exceeded", "max_tokens"),
    ({**GOOD, "temperature": -1}, "invalid_value", "temperature"),
    ({**GOOD, "top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({**GOOD, "logprobs": True, "top_logprobs": 6}, "invalid_value", "top_logprobs"),
    ({**GOOD, "stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({**GOOD, "tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({**GOOD, "tool_choice": "sometimes"}, "invalid_type", "tool_choice"),
    ({**GOOD, "response_format": {"type": "xml"}}, "invalid_type", "response_format.type"),
    ({**GOOD, "use_beam_search": True}, "unsupported_parameter", "use_beam_search"),
    ({**GOOD, "chat_template": "{{ x }}"}, "unsupported_parameter", "chat_template"),
    ({**GOOD, "chat_template_kwargs": {"tokenize": True}}, "invalid_value", "messages"),
    ({**GOOD, "logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
    ({**GOOD, "stop": [""]}, "invalid_value", "stop"),
    ([GOOD], "invalid_type", None),
    ("text", "invalid_type", None),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
async def test_a_body_that_cannot_be_meant_is_refused_by_the_field_s_name(
    served_once: Served, body: object, code: str, param: str | None
) -> None:
    bodies = [body]
    if isinstance(body, dict) and param != "stream_options":  # which want a stream
        bodies.append({**body, "stream": True})
    for each in bodies:
        error = error_of(await served_once.post(CHAT, each), 400, code)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert len(error["message"]) < 300


@pytest_asyncio.fixture
async def served_once(served: Served) -> AsyncIterator[Served]:
    yield served
    assert served.engine.seen == []
    assert served.server.admission.in_flight == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model": ', "not valid JSON"),
        (b"", "body is empty"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"model": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"model": NaN}', "not valid JSON"),
        (b'{"model": "\\ud800", "messages": []}', "not valid JSON"),
        (b'{"\\ud800": 1}', "not valid JSON"),
        (b"[" * 90, "not valid JSON"),
        (b"[" * 20_000, "20000 levels of lists and objects"),
    ],
)
async def test_what_is_no_json_is_refused_as_such(
    served_once: Served, content: bytes, message: str
) -> None:
    headers = {**served_once.auth, "content-type": "application/json"}
    reply = await served_once.client.post(CHAT, content=content, headers=headers)
    assert reply.status_code == 400, reply.text
    assert message in reply.json()["error"]["message"]


async def test_half_a_character_hidden_in_a_tool_s_arguments_is_no_failure(served: Served) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    body = {"model": "base", "messages": messages}
    reply = await served.post(CHAT, {**body, "max_tokens": 1})
    assert reply.status_code == 200, reply.text


async def test_deep_json_where_anything_goes_is_no_failure_of_the_server(served: Served) -> None:
    deep: object = {}
    for _ in range(400):
        deep = {"a": deep}
    for field in ("metadata", "chat_template_kwargs"):
        reply = await served.post(CHAT, {**GOOD, "max_tokens": 1, field: deep})
        assert reply.status_code in (200, 400), reply.text


async def test_a_prompt_longer_than_the_context_is_refused(served: Served) -> None:
    error = error_of(await served.chat("x" * 300), 400, "context_length_exceeded")
    assert "256 tokens" in error["message"]
    assert error["param"] == "messages"


async def test_what_a_client_gets_back_of_its_own_words_is_short(served: Served) -> None:
    body = {"model": "base", "messages": [{"role": "r" * 50_000, "content": "hi"}]}
    error = error_of(await served.post(CHAT, body), 400, "invalid_value")
    assert len(error["message"]) < 1100


async def test_a_body_over_the_limit_is_refused_by_its_stated_length(served: Served) -> None:
    error = error_of(await served.chat("x" * 100_000), 413, "request_too_large")
    assert "100000 bytes" in error["message"]


async def test_a_body_over_the_limit_is_refused_while_it_comes(served: Served) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    headers = {**served.auth, "content-type": "application/json"}
    reply = await served.client.post(CHAT, content=endless(), headers=headers)
    error_of(reply, 413, "request_too_large")
    assert sent <= 200_000


async def test_an_admin_s_json_has_the_same_limit(served: Served) -> None:
    reply = await served.client.post("/admin/v1/tenants", content=b" " * 200_000)
    error_of(reply, 413, "request_too_large")


async def test_an_unknown_path_and_a_wrong_method_are_told_apart(served: Served) -> None:
    error_of(await served.client.get("/v1/nothing", headers=served.auth), 404, "not_found")
    reply = await served.client.get(CHAT, headers=served.auth)
    error_of(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


# ---- who may


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("lg-nobody"), {"authorization": "Basic abc"}, {"authorization": "Bearer "}],
)
async def test_without_a_good_key_nothing_is_answered(
    served: Served, headers: dict[str, str]
) -> None:
    for reply in (
        await served.client.post(CHAT, json=GOOD, headers=headers),
        await served.client.post(CHAT, json={"model": 3}, headers=headers),
        await served.client.post(COMPLETIONS, json={}, headers=headers),
        await served.client.get("/v1/models", headers=headers),
    ):
        error = error_of(reply, 401, "invalid_api_key")
        assert error["type"] == "authentication_error"
        assert reply.headers["www-authenticate"] == "Bearer"
    assert served.engine.seen == []


async def test_the_admin_key_opens_no_model(served: Served) -> None:
    reply = await served.client.post(CHAT, json=GOOD, headers=bearer(served.admin_key))
    error_of(reply, 403, "permission_denied")


async def test_a_tenant_s_key_opens_no_administration(served: Served) -> None:
    error_of(
        await served.client.get("/admin/v1/tenants", headers=served.auth), 403, "permission_denied"
    )


async def test_another_tenant_s_adapter_is_answered_like_one_that_is_not(served: Served) -> None:
    for form in ("{}", "globex/{}", "{}@v1", "{}@champion"):
        replies = [await served.chat(model=form.format(name)) for name in ("router", "absent")]
        texts = [
            error_of(reply, 404, "model_not_found")["message"].replace(name, "NAME")
            for reply, name in zip(replies, ("router", "absent"), strict=True)
        ]
        assert texts[0] == texts[1]
        assert sorted(replies[0].headers) == sorted(replies[1].headers)


async def test_the_endpoint_of_a_tenant_is_its_own_and_no_one_else_s(served: Served) -> None:
    own = await served.post("/t/acme/v1/chat/completions", {**GOOD, "max_tokens": 1})
    assert own.status_code == 200
    replies = [
        await served.post(f"/t/{tenant}/v1/chat/completions", GOOD)
        for tenant in ("globex", "nobody")
    ]
    errors = [error_of(reply, 404, "model_not_found") for reply in replies]
    assert errors[0] == errors[1]
    listed = await served.client.get("/t/globex/v1/models", headers=served.auth)
    error_of(listed, 404, "model_not_found")


async def test_the_list_of_models_is_the_caller_s(served: Served) -> None:
    reply = await served.client.get("/v1/models", headers=served.auth)
    body = reply.json()
    assert body["object"] == "list"
    ids = [card["id"] for card in body["data"]]
    assert ids == ["tiny", "support", "support@champion", "support@v1"]
    assert not any("router" in json.dumps(card) for card in body["data"])
    for card in body["data"]:
        got = await served.client.get(f"/v1/models/{card['id']}", headers=served.auth)
        assert got.json() == card
        assert card["object"] == "model"
        assert sorted(card) == [
            "adapter", "created", "digest", "id", "max_model_len", "object", "owned_by", "parent",
            "root",
        ]  # fmt: skip
        assert card["max_model_len"] == served.engine.model.max_model_len
    assert [card["root"] for card in body["data"]] == ["tiny"] + ["acme/support@v1"] * 3
    assert [card["parent"] for card in body["data"]] == [None] + ["tiny"] * 3
    missing = await served.client.get("/v1/models/router", headers=served.auth)
    error_of(missing, 404, "model_not_found")


OPEN_PATHS = {
    "/",  # leads to /docs
    "/livez",
    "/readyz",
    "/health",
    "/ping",
    "/version",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/swagger/swagger-ui.css",
    "/swagger/swagger-ui-bundle.js",
    "/swagger/favicon-32x32.png",
}


async def test_every_route_but_the_probes_and_the_documentation_wants_a_key(
    served: Served,
) -> None:
    app = served.server.http
    assert isinstance(app, FastAPI)
    checked: list[str] = []
    for route in app.routes:
        if not isinstance(route, StarletteRoute) or route.path in OPEN_PATHS:
            continue
        path = re.sub(r"\{\w+(:path)?\}", "v1", route.path.replace("{tenant}", "acme"))
        for method in sorted(route.methods or ()):
            for body in (None, {}):
                reply = await served.client.request(method, path, json=body)
                assert reply.status_code == 401, (method, path, reply.text)
            checked.append(f"{method} {path}")
    assert len(checked) >= 8 + 10
    assert "POST /v1/chat/completions" in checked


# ---- operation


async def test_the_probes_follow_the_engine_and_the_drain(served: Served) -> None:
    async def probe() -> tuple[int, int]:
        live, *ready = [
            await served.client.get(path) for path in ("/livez", "/readyz", "/health", "/ping")
        ]
        ready.append(await served.client.post("/ping"))
        (status,) = {reply.status_code for reply in ready}
        return live.status_code, status

    assert await probe() == (200, 200)
    await served.server.drain()
    assert await probe() == (200, 503)
    reply = await served.chat()
    error_of(reply, 503, "draining")
    assert reply.headers["retry-after"] == "1"
    served.engine.is_alive = False
    assert await probe() == (200, 503)


async def test_the_version_is_served(served: Served) -> None:
    reply = await served.client.get("/version")
    assert reply.json() == {"version": metadata.version("loragate")}


async def test_a_dead_engine_is_said_to_be_dead(served: Served) -> None:
    served.engine.is_alive = False
    reply = await served.chat()
    error_of(reply, 503, "engine_dead")
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["retry-after-ms"] == "1000"


async def test_the_documentation_is_served(served: Served) -> None:
    assert (await served.client.get("/docs")).status_code == 200
    document = (await served.client.get("/openapi.json")).json()
    body = document["components"]["schemas"]["ChatBody"]["properties"]
    assert {"messages", "model", "top_k", "response_format"} <= set(body)


async def test_metrics_count_what_was_served(served: Served) -> None:
    await served.chat(max_tokens=3)
    await served.chat(max_tokens=-1)
    text = (await served.client.get("/metrics")).text
    for outcome in ("ok", "invalid_value"):
        labels = f'adapter="acme/support",outcome="{outcome}",tenant="acme",transport="http"'
        assert f"loragate_requests_total{{{labels}}} 1.0" in text
    assert 'loragate_completion_tokens_total{adapter="acme/support",tenant="acme"} 3.0' in text
    info = 'adapter="acme/support",alias="champion",tenant="acme",version="v1"'
    assert f"loragate_adapter_info{{{info}}} 1.0" in text
    assert "loragate_adapters_resident 1.0" in text
    assert "loragate_requests_running 0.0" in text


async def test_metrics_can_be_kept_for_the_admin(serve_with: ServeWith) -> None:
    async with serve_with(metrics=MetricsConfig(require_admin_key=True)) as served:
        error_of(await served.client.get("/metrics"), 401, "invalid_api_key")
        reply = await served.client.get("/metrics", headers=served.auth)
        error_of(reply, 403, "permission_denied")
        reply = await served.client.get("/metrics", headers=bearer(served.admin_key))
        assert reply.status_code == 200


@pytest.mark.parametrize("sent", ["mine-1", "A.b_c-" + "x" * 100])
async def test_a_request_id_that_is_sent_comes_back(served: Served, sent: str) -> None:
    for reply in (
        await served.client.post(
            CHAT, json={**GOOD, "max_tokens": 1}, headers={**served.auth, "x-request-id": sent}
        ),
        await served.client.post(CHAT, json=GOOD, headers={"x-request-id": sent}),
        await served.client.get("/nothing", headers={"x-request-id": sent}),
    ):
        assert reply.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, 'a"}{'])
async def test_a_request_id_that_cannot_be_logged_is_replaced(served: Served, sent: str) -> None:
    replies = [await served.client.get("/livez", headers={"x-request-id": sent}) for _ in "ab"]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(re.fullmatch(r"req-[0-9a-f]{32}", request_id) for request_id in ids)
    assert ids[0] != ids[1]


async def test_two_requests_of_one_id_do_not_meet_in_the_engine(served: Served) -> None:
    headers = {**served.auth, "x-request-id": "same"}
    body = {**GOOD, "max_tokens": 2}
    replies = await asyncio.gather(
        *(served.client.post(CHAT, json=body, headers=headers) for _ in range(2))
    )
    assert [reply.status_code for reply in replies] == [200, 200]
    assert len({request.id for request in served.engine.seen}) == 2


async def test_tenants_share_no_prefix_cache(served: Served) -> None:
    for key in ("acme", "globex"):
        await served.post(COMPLETIONS, {"model": "base", "prompt": "abc"}, key)
    assert len({request.cache_salt for request in served.engine.seen}) == 2


# ---- limits


async def test_a_spent_budget_is_429_with_the_time_to_come_back(serve_with: ServeWith) -> None:
    async with serve_with(limits=LimitsConfig(requests_per_minute=1)) as served:
        assert (await served.chat(max_tokens=1)).status_code == 200
        reply = await served.chat(max_tokens=1)
        error = error_of(reply, 429, "rate_limit_exceeded")
        assert error["type"] == "rate_limit_error"
        assert 50 < int(reply.headers["retry-after"]) <= 60
        assert 50_000 < int(reply.headers["retry-after-ms"]) <= 60_000
        assert "x-should-retry" not in reply.headers
        other = await served.post(COMPLETIONS, {"model": "base", "prompt": "a"}, "globex")
        assert other.status_code == 200


async def test_a_request_that_can_never_fit_is_not_worth_a_retry(serve_with: ServeWith) -> None:
    async with serve_with(limits=LimitsConfig(tokens_per_minute=50)) as served:
        reply = await served.chat(max_tokens=100)
        error_of(reply, 429, "request_exceeds_limit")
        assert reply.headers["x-should-retry"] == "false"
        assert "retry-after" not in reply.headers


async def test_an_answer_of_no_stated_length_is_cut_to_the_budget(serve_with: ServeWith) -> None:
    async with serve_with(limits=LimitsConfig(tokens_per_minute=60)) as served:
        reply = await served.chat("hi", min_tokens=200)
        assert reply.status_code == 200, reply.text
        sampling = served.engine.seen[0].sampling
        prompt = len(served.engine.seen[0].prompt_ids)
        assert sampling.max_tokens == 60 - prompt
        assert sampling.min_tokens == sampling.max_tokens


async def test_tokens_that_were_not_used_can_be_used_again(serve_with: ServeWith) -> None:
    async with serve_with(limits=LimitsConfig(tokens_per_minute=200)) as served:
        for _ in range(3):  # each may use 100 and uses 4: two at most if nothing came back
            reply = await served.complete("ab", max_tokens=90)
            assert reply.status_code == 200, reply.text


async def test_a_full_server_is_503_with_the_time_to_come_back(serve_with: ServeWith) -> None:
    limits = LimitsConfig(max_in_flight=1, max_queued=0)
    async with serve_with(limits=limits) as served:
        served.engine.pace_seconds = 5
        first = asyncio.create_task(served.chat(model="base"))
        await until(lambda: bool(served.engine.running))
        reply = await served.chat()
        error_of(reply, 503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        first.cancel()


# ---- failures


@dataclass
class FailingEngine(EchoEngine):
    """Breaks at a step of an answer with an error that nobody foresaw."""

    at: int = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        step = 0
        async for delta in super().generate(request):
            if step == self.at:
                raise ZeroDivisionError("a secret of the engine")
            step += 1
            yield delta


class TestWithAFailingEngine:
    @pytest.fixture
    def engine(self) -> EchoEngine:
        return FailingEngine()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_error_before_the_first_token_has_a_status_and_says_nothing(
        self, served: Served, stream: bool
    ) -> None:
        reply = await served.chat(stream=stream)
        error = error_of(reply, 500, "internal_error")
        assert error["type"] == "server_error"
        assert "secret" not in reply.text
        assert served.server.admission.in_flight == 0

    async def test_an_error_in_a_stream_is_an_event_and_ends_it(
        self, served: Served, engine: EchoEngine
    ) -> None:
        assert isinstance(engine, FailingEngine)
        engine.at = 2
        reply = await served.chat(stream=True)
        assert reply.status_code == 200
        *chunks, last = events(reply)
        assert len(chunks) == 3
        assert last["error"]["code"] == "internal_error"
        assert "secret" not in reply.text

    async def test_an_error_after_the_first_token_still_has_a_status_where_nothing_is_streamed(
        self, served: Served, engine: EchoEngine
    ) -> None:
        assert isinstance(engine, FailingEngine)
        engine.at = 2
        error_of(await served.chat(), 500, "internal_error")

    async def test_tokens_of_a_failed_request_are_recorded_with_what_ended_it(
        self, served: Served, engine: EchoEngine
    ) -> None:
        assert isinstance(engine, FailingEngine)
        engine.at = 2
        await served.chat(stream=True)
        await until(lambda: bool(served.registry.usage.list()), 3)
        (row,) = served.registry.usage.list()
        assert (row.outcome, row.completion_tokens) == ("internal_error", 2)


async def test_an_adapter_that_the_engine_refuses_is_503(served: Served) -> None:
    served.engine.refused.add("acme/support@v1")
    error = error_of(await served.chat(), 503, "adapter_refused")
    assert "acme/support@v1" in error["message"]
    assert (await served.chat(model="base", max_tokens=1)).status_code == 200


async def test_a_request_that_takes_too_long_is_504(serve_with: ServeWith) -> None:
    async with serve_with(server=ServerConfig(request_timeout_seconds=0.02)) as served:
        served.engine.pace_seconds = 5
        error_of(await served.chat(model="base"), 504, "deadline_exceeded")
        assert served.engine.running == set()


# ---- on a real socket: clients that leave, and a server that stops

SLOW = {**GOOD, "model": "base"}  # with a slow engine: the base model needs no load first


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine(served: Served, stream: bool) -> None:
    served.engine.pace_seconds = 0.05
    async with on_a_socket(served) as client:
        asking = asyncio.create_task(
            client.post(CHAT, json={**SLOW, "messages": long_chat(), "stream": stream})
        )
        await until(lambda: bool(served.engine.running), 3)
        asking.cancel()
        await until(lambda: not served.engine.running)
        assert len(served.engine.aborted) == 1
        await until(lambda: served.server.admission.in_flight == 0)
    await until(lambda: bool(served.registry.usage.list()), 3)
    assert served.registry.usage.list()[0].outcome == "cancelled"


def long_chat() -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * 150}]


async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_engine(
    served: Served,
) -> None:
    served.engine.pace_seconds = 0.02
    async with on_a_socket(served) as client:
        body = {**SLOW, "messages": long_chat(), "stream": True}
        async with client.stream("POST", CHAT, json=body) as reply:
            lines = reply.aiter_lines()
            for _ in range(3):
                await anext(lines)
            assert served.engine.running
        await until(lambda: not served.engine.running)


async def test_a_client_that_leaves_the_queue_is_never_answered(serve_with: ServeWith) -> None:
    async with serve_with(
        server=ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0"),
        limits=LimitsConfig(max_in_flight=1, queue_timeout_seconds=30),
    ) as served:
        served.engine.pace_seconds = 30
        gate = served.server.admission
        async with on_a_socket(served) as client:
            first = asyncio.create_task(client.post(CHAT, json=SLOW))
            await until(lambda: bool(served.engine.running), 3)
            second = asyncio.create_task(client.post(CHAT, json=SLOW))
            await until(lambda: gate.queued == 1, 3)
            second.cancel()
            await until(lambda: gate.queued == 0)
            first.cancel()
            await until(lambda: gate.in_flight == 0)
        assert len(served.engine.seen) == 1


async def test_tokens_arrive_as_they_are_made(served: Served) -> None:
    async with on_a_socket(served) as client:
        served.engine.pace_seconds = 0.05
        body = {**SLOW, "max_tokens": 20, "stream": True}
        async with client.stream("POST", CHAT, json=body) as reply:
            assert reply.headers["cache-control"] == "no-cache"
            await anext(reply.aiter_lines())
            assert served.engine.running


async def test_what_runs_is_finished_before_the_server_stops(served: Served) -> None:
    served.engine.pace_seconds = 0.01
    async with on_a_socket(served) as client:
        asking = asyncio.create_task(client.post(CHAT, json={**SLOW, "max_tokens": 20}))
        await until(lambda: bool(served.engine.running), 3)
        await served.server.drain()
        assert not served.engine.running
        reply = await asking
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 20


async def test_what_outlasts_the_drain_is_cut_off_and_recorded(serve_with: ServeWith) -> None:
    server = ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0", drain_seconds=0.05)
    async with serve_with(server=server) as served, httpx.AsyncClient(timeout=60) as client:
        served.engine.pace_seconds = 60
        async with asyncio.timeout(10):
            async with served.server.listening():
                url = f"http://127.0.0.1:{served.server.http_port}{CHAT}"
                asking = asyncio.create_task(client.post(url, json=SLOW, headers=served.auth))
                await until(lambda: bool(served.engine.running), 3)
                await served.server.drain()
            # The client has waited all the while; it is the server that has ended it.
            assert not served.engine.running
            error_of(await asking, 503, "draining")
        await until(lambda: bool(served.registry.usage.list()), 3)
        assert served.registry.usage.list()[0].outcome == "draining"
