"""What a model thinks aloud, told from its answer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from transformers import PreTrainedTokenizerFast
from vllm.parser import ParserManager

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.manifest import AdapterManifest, Contract
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.rendering.templates import Templates
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import Delta, SamplingParams
from loragate.server.engine.vllm.reasoning import VllmReasoning
from loragate.server.gateway.prompting import PromptBuilder
from loragate.server.http.requests import ChatBody
from loragate.v1 import inference_pb2 as pb
from loragate.v1.inference_pb2_grpc import InferenceStub
from support.engines.echo_engine import TINY_MODEL
from support.engines.scripted_engine import ScriptedEngine
from support.models.tokenizers import byte_tokenizer
from support.server.small_server import Served


def tokenizer() -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    made.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return made


TOKENIZER: Any = tokenizer()


def reasoning(
    prompt: str = "<|turn|>assistant\n", family: str = "deepseek_r1", **kwargs: object
) -> VllmReasoning:
    parser_class = ParserManager.get_parser(reasoning_parser_name=family)
    assert parser_class is not None
    ids = TOKENIZER.encode(prompt, add_special_tokens=False)
    return VllmReasoning(parser_class, TOKENIZER, None, kwargs, ids)


def deltas(text: str, tokens_of_each: int = 1) -> list[Delta]:
    """As the engine would give them."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces = [ids[i : i + tokens_of_each] for i in range(0, len(ids), tokens_of_each)]
    made = [
        Delta(index=0, text=TOKENIZER.decode(piece), token_ids=tuple(piece)) for piece in pieces
    ]
    return [*made[:-1], msgspec.structs.replace(made[-1], finish_reason="stop")]


def told(session: VllmReasoning, answer: Sequence[Delta]) -> tuple[str, str, int]:
    parser = session.parser()
    thoughts = [parser.push(delta) for delta in answer]
    return (
        "".join(thought.reasoning for thought in thoughts),
        "".join(thought.content for thought in thoughts),
        sum(thought.tokens for thought in thoughts),
    )


@pytest.mark.parametrize("tokens_of_each", [1, 3, 50])
@pytest.mark.parametrize(
    ("family", "prompt", "text"),
    [
        ("deepseek_r1", "<|turn|>assistant\n<think>", "Let me see</think>Blue."),
        ("deepseek_r1", "<|turn|>assistant\n", "<think>Let me see</think>Blue."),
        ("qwen3", "<|turn|>assistant\n", "<think>Let me see</think>Blue."),
        ("qwen3", "<|turn|>assistant\n<think>", "Let me see</think>Blue."),
    ],
)
def test_thoughts_and_answer_are_told_apart_and_tokens_counted(
    family: str, prompt: str, text: str, tokens_of_each: int
) -> None:
    thought, answer, tokens = told(reasoning(prompt, family), deltas(text, tokens_of_each))
    assert (thought, answer) == ("Let me see", "Blue.")
    slack = 2 if tokens_of_each == 1 else 4  # of tags, and of steps with both in them
    assert abs(tokens - len("Let me see")) <= slack


@pytest.mark.parametrize("late", [1, 2, 7])
def test_text_that_comes_behind_its_tokens_is_told_apart_as_well(late: int) -> None:
    """As the engine gives it where it looks out for stop texts."""
    session = reasoning()
    session.bind(SamplingParams(stop=("x" * late,)))
    ids = TOKENIZER.encode("<think>Let me see</think>Blue.", add_special_tokens=False)
    texts = [TOKENIZER.decode([each]) for each in ids]
    behind = ["" for _ in range(late)] + texts[:-late]
    answer = [
        Delta(index=0, text=text, token_ids=(each,)) for text, each in zip(behind, ids, strict=True)
    ]
    rest = Delta(index=0, text="".join(texts[-late:]), finish_reason="stop")
    assert told(session, [*answer, rest])[:2] == ("Let me see", "Blue.")


def test_thoughts_that_never_end_are_no_answer() -> None:
    thought, answer, tokens = told(reasoning(), deltas("<think>Let me"))
    assert (thought, answer) == ("Let me", "")
    assert tokens == len("Let me") + 1


@pytest.mark.parametrize("family", ["deepseek_r1", "qwen3"])
def test_where_the_template_has_closed_the_thoughts_all_is_the_answer(family: str) -> None:
    session = reasoning("<|turn|>assistant\n<think>\n\n</think>\n\n", family, enable_thinking=False)
    assert told(session, deltas("Blue.")) == ("", "Blue.", 0)


def test_a_tag_in_an_earlier_turn_ends_no_thoughts() -> None:
    session = reasoning("<|turn|>user\n</think><|end|><|turn|>assistant\n<think>")
    assert told(session, deltas("Hm</think>Blue."))[:2] == ("Hm", "Blue.")


# ---- over HTTP and gRPC


@dataclass
class ThinkingEngine(ScriptedEngine):
    asked_with: dict[str, object] = field(default_factory=dict)

    def reasoning(
        self, template_kwargs: Mapping[str, object], prompt_ids: Sequence[int]
    ) -> VllmReasoning:
        self.asked_with = dict(template_kwargs)
        return reasoning()


@pytest.fixture
def engine() -> ThinkingEngine:
    return ThinkingEngine(script=deltas("<think>Hm?</think>Blue."))


async def test_thoughts_stand_beside_the_answer_over_http(served: Served) -> None:
    body = (await served.chat(max_tokens=50, chat_template_kwargs={"enable_thinking": True})).json()
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "Hm?"
    assert message["content"] == "Blue."
    usage = body["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 4}  # with their first tag
    assert usage["completion_tokens"] == len(deltas("<think>Hm?</think>Blue."))
    assert isinstance(served.engine, ThinkingEngine)
    assert served.engine.asked_with == {"enable_thinking": True}


async def test_thoughts_stream_before_the_answer_over_http(served: Served) -> None:
    reply = await served.chat(max_tokens=50, stream=True, stream_options={"include_usage": True})
    chunks = [
        json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")
    ]
    said = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in said) == "Hm?"
    assert "".join(delta.get("reasoning") or "" for delta in said) == "Hm?"
    assert "".join(delta.get("content") or "" for delta in said) == "Blue."
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


async def test_thoughts_are_left_out_for_who_wants_none(served: Served) -> None:
    body = (await served.chat(max_tokens=50, include_reasoning=False)).json()
    assert body["choices"][0]["message"]["reasoning_content"] is None
    assert body["choices"][0]["message"]["content"] == "Blue."
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


async def test_thoughts_stand_beside_the_answer_over_grpc(served: Served) -> None:
    request = pb.ChatRequest(model="support", messages=[pb.Message(role="user", content="hi")])
    metadata = (("authorization", f"Bearer {served.keys['acme']}"),)
    async with served.server.listening(), served.channel() as channel:
        stub = InferenceStub(channel)
        whole = await stub.Chat(request, metadata=metadata)
        chunks = [chunk async for chunk in stub.ChatStream(request, metadata=metadata)]
    assert whole.choices[0].message.reasoning == "Hm?"
    assert whole.choices[0].message.content == "Blue."
    assert whole.usage.reasoning_tokens == 4
    said = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.reasoning for delta in said) == "Hm?"
    assert "".join(delta.content for delta in said) == "Blue."


async def test_thoughts_of_earlier_turns_reach_templates_that_have_a_place_for_them(
    roomy: PromptBuilder,
) -> None:
    contract = Contract(
        chat_template="{{ messages[0].reasoning_content }} {{ messages[0].reasoning }} {{ tone }}",
        chat_template_kwargs={"tone": "dry", "other": 1},
    )
    for body in ({"reasoning_content": "hm"}, {"reasoning": "hm"}):
        turn = {"role": "assistant", "content": "Blue.", **body}
        request = ChatBody.model_validate({"model": "base", "messages": [turn]}).to_core()
        prepared = await roomy.prepare(request, contract, "acme")
        assert roomy.renderer.decode(prepared.prompt_ids[0]) == "hm hm dry"
        assert prepared.template_kwargs == {"tone": "dry", "other": 1}
        own = replace(request, template_kwargs={"tone": "wet"})
        prepared = await roomy.prepare(own, contract, "acme")
        assert roomy.renderer.decode(prepared.prompt_ids[0]) == "hm hm wet"


@pytest.fixture
def roomy() -> Iterator[PromptBuilder]:
    model = replace(TINY_MODEL, max_model_len=1000)
    with Templates() as templates:
        yield PromptBuilder(Renderer(byte_tokenizer()), model, FairThreads(), templates)


def test_a_contract_s_variables_of_the_template_are_kept_and_checked() -> None:
    base = AdapterManifest(8, 16, ("q_proj",))
    text = '{"contract": {"chat_template_kwargs": {"enable_thinking": false, "tags": ["a"]}}}'
    manifest = AdapterManifest.from_json(text, base)
    manifest.check_bounds()
    assert manifest.contract.chat_template_kwargs == {"enable_thinking": False, "tags": ["a"]}
    assert AdapterManifest.from_json(manifest.to_json(), base) == manifest
    for name in ("messages", "tools", "tokenize", "add_generation_prompt", "chat_template"):
        text = f'{{"contract": {{"chat_template_kwargs": {{"{name}": 1}}}}}}'
        with pytest.raises(InvalidAdapter, match=name):
            AdapterManifest.from_json(text, base).check_bounds()
