"""What a client may rely on, on the real engine, the same over HTTP and gRPC."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import grpc
import pytest

from support.clients.both_transports import Answer, Client, GrpcClient, HttpClient, Refused
from support.server.real_server import Served

ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says what the weather is in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CHOICES: dict[str, object] = {
    "required": "required",
    "named": {"type": "function", "function": {"name": "get_weather"}},
}
STATUSES = {
    "http": {"bad": 400, "unauthenticated": 401, "not found": 404},
    "grpc": {
        "bad": grpc.StatusCode.INVALID_ARGUMENT,
        "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
        "not found": grpc.StatusCode.NOT_FOUND,
    },
}

Make = Callable[[str], Client]


@pytest.fixture(params=[HttpClient, GrpcClient], ids=["http", "grpc"])
def make(request: pytest.FixtureRequest, served: Served) -> Make:
    """Makes a client of a tenant, or one with the key that is given."""
    return lambda who: request.param(served, served.world.keys.get(who, who))


@pytest.fixture
def acme(make: Make) -> Client:
    return make("acme")


def test_stream_and_whole_answer_say_the_same(acme: Client) -> None:
    whole = acme.chat("support", ASK, return_token_ids=True, **GREEDY)
    streamed = acme.stream("support", ASK, return_token_ids=True, **GREEDY)

    assert streamed.text == whole.text != ""
    assert streamed.token_ids == whole.token_ids
    assert streamed.finish_reason == whole.finish_reason == "length"
    assert streamed.frames > 2
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (
        whole.prompt_tokens,
        whole.completion_tokens,
    )


def test_answer_says_which_weights_gave_it(acme: Client, served: Served) -> None:
    version = served.world.versions["acme/support"]

    for model in ("support", "support@champion", "support@v1"):
        answer = acme.chat(model, ASK, **GREEDY)
        assert (answer.adapter, answer.digest) == (str(version), version.digest)

    assert acme.chat("base", ASK, **GREEDY).adapter == "base"


def test_models_are_those_of_the_caller(make: Make) -> None:
    acme, globex = set(make("acme").models()), set(make("globex").models())

    assert {"support", "support@v1", "support@champion", "loud"} <= acme
    assert {"router", "odd"} <= globex
    assert acme & globex == {"smollm2-135m-instruct"}


def test_seed_repeats_a_sampled_answer(acme: Client) -> None:
    first, second, other = (
        acme.chat("base", ASK, temperature=1.5, max_tokens=12, seed=seed).text for seed in (1, 1, 2)
    )
    assert first == second != other


def test_stop_string_ends_the_answer_and_is_left_out(acme: Client) -> None:
    answer = acme.complete("base", "1, 2, 3, 4,", temperature=0, max_tokens=24, stop="7")

    assert answer.finish_reason == "stop"
    assert "6" in answer.text
    assert "7" not in answer.text


def test_logit_bias_forces_a_token(acme: Client) -> None:
    answer = acme.complete("base", "Hello", temperature=0, max_tokens=3, logit_bias={"504": 100})
    assert answer.text == "TheTheThe"


def test_repetition_penalty_changes_a_repeating_answer(acme: Client) -> None:
    free = acme.complete("base", "ha ha ha ha", temperature=0, max_tokens=8)
    held = acme.complete("base", "ha ha ha ha", temperature=0, max_tokens=8, repetition_penalty=2.0)
    assert free.text != held.text


def test_logprobs_are_probabilities_of_the_chosen_tokens(acme: Client) -> None:
    answer = acme.chat("base", ASK, top_logprobs=2, return_token_ids=True, **GREEDY)

    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(logprob <= 0 for logprob in answer.logprobs)


def test_echo_scores_a_prompt(acme: Client) -> None:
    answer = acme.complete("base", "The capital of France is Paris", echo=True, max_tokens=1)
    assert answer.text.startswith("The capital of France is Paris")


def test_json_schema_binds_the_answer(acme: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}

    answer = acme.chat("base", ASK, response_format=wanted, temperature=0, max_tokens=64)

    verdict = json.loads(answer.text)
    assert isinstance(verdict["ok"], bool)
    assert verdict["kind"] in ("a", "b")


def test_json_object_begins_an_object(acme: Client) -> None:
    answer = acme.chat("base", ASK, response_format={"type": "json_object"}, **GREEDY)
    assert answer.text.lstrip().startswith("{")


@pytest.fixture(scope="module")
def forced_calls(served: Served) -> Mapping[tuple[str, str, str], Answer]:
    """Answers by transport, way and choice, all asked at once, which takes as long as one."""
    asked: dict[tuple[str, str, str], Callable[..., Answer]] = {}
    for made, choice in product((HttpClient, GrpcClient), CHOICES):
        client = made(served, served.world.keys["acme"])
        asked[client.transport, "whole", choice] = client.chat
        asked[client.transport, "streamed", choice] = client.stream

    def ask(key: tuple[str, str, str]) -> Answer:
        params = {"tools": [WEATHER], "tool_choice": CHOICES[key[-1]]}
        return asked[key]("base", ASK, **params, temperature=0, max_tokens=64)

    with ThreadPoolExecutor(len(asked)) as pool:
        return dict(zip(asked, pool.map(ask, asked), strict=True))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_forced_tool_call_has_arguments_after_its_schema(
    forced_calls: Mapping[tuple[str, str, str], Answer], transport: str, way: str, choice: str
) -> None:
    answer = forced_calls[transport, way, choice]

    assert [name for name, _ in answer.calls] == ["get_weather"]
    assert set(json.loads(answer.calls[0][1])) == {"city"}
    assert answer.text == ""
    assert answer.finish_reason == "tool_calls"


def test_tools_that_may_not_be_called_are_not(acme: Client) -> None:
    answer = acme.chat("base", ASK, tools=[WEATHER], tool_choice="none", **GREEDY)
    assert answer.calls == []
    assert answer.text != ""


def test_tools_of_choice_auto_leave_an_ordinary_answer_alone(acme: Client) -> None:
    answer = acme.stream("base", ASK, tools=[WEATHER], tool_choice="auto", **GREEDY)
    assert answer.text != ""


@pytest.mark.parametrize(
    ("model", "params", "status", "code"),
    [
        ("nothing", {}, "not found", "model_not_found"),
        ("router", {}, "not found", "model_not_found"),
        ("support@v9", {}, "not found", "model_not_found"),
        ("base", {"max_tokens": 5000}, "bad", "context_length_exceeded"),
        ("base", {"temperature": -1}, "bad", "invalid_value"),
        ("base", {"n": 0}, "bad", "invalid_value"),
        ("base", {"logit_bias": {"999999": 1}}, "bad", "invalid_value"),
        ("base", {"stop": ""}, "bad", "invalid_value"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_refusal_has_the_same_code_over_both_transports(
    acme: Client, model: str, params: dict[str, object], status: str, code: str, streamed: bool
) -> None:
    ask = acme.stream if streamed else acme.chat
    with pytest.raises(Refused) as caught:
        ask(model, ASK, **params)
    assert (caught.value.status, caught.value.code) == (STATUSES[acme.transport][status], code)


def test_schema_that_no_grammar_can_hold_is_the_requests_fault(acme: Client) -> None:
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "bad", "schema": {"type": "nonsense"}},
    }
    with pytest.raises(Refused) as caught:
        acme.chat("base", ASK, response_format=wanted, max_tokens=4)
    assert caught.value.status == STATUSES[acme.transport]["bad"]


def test_unknown_key_opens_nothing(make: Make) -> None:
    with pytest.raises(Refused) as caught:
        make("lg-aaaaaaaa-not-a-key").chat("base", ASK, max_tokens=1)
    assert caught.value.status == STATUSES[caught_transport(caught)]["unauthenticated"]
    assert caught.value.code == "invalid_api_key"


def caught_transport(caught: pytest.ExceptionInfo[Refused]) -> str:
    return "http" if isinstance(caught.value.status, int) else "grpc"
