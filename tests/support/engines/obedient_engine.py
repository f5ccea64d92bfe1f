"""An engine that does what it is told: for clients that need a model which obeys."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import msgspec
from transformers import PreTrainedTokenizerFast

from loragate.server.core import (
    ChatRequest,
    Delta,
    FinishReason,
    Message,
    SamplingParams,
    StructuredOutput,
    TokenLogprob,
    Tool,
    ToolCallDelta,
)
from loragate.server.engine.protocol import EngineRequest
from support.engines.echo_engine import EchoEngine, EchoToolParser, EchoTools
from support.models.tokenizers import byte_tokenizer

CALLS = "calls:"  # what a planned answer of calls begins with
_TOKENIZER: PreTrainedTokenizerFast = byte_tokenizer()
_END = "<|end|>"


@dataclass
class ObedientEngine(EchoEngine):
    """Answers a turn by what its last text asks for, or else by saying it again.

    "think" in it makes the answer begin with reasoning, "endless" one that goes on to its bound.
    With tools, a function is called that the text names, or that must be; when a tool has
    answered, its answer is said. A JSON schema is kept: numbers and quoted texts come from the
    last text in their order.
    """

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.id.startswith("probe-"):
            async for delta in super().generate(request):
                yield delta
            return
        prompt = _prompt_logprobs(request)
        for index in range(request.sampling.n):
            for i, delta in enumerate(_answer(request)):
                await asyncio.sleep(0)
                if i == 0 and prompt is not None:
                    delta = msgspec.structs.replace(delta, prompt_logprobs=prompt)
                yield msgspec.structs.replace(delta, index=index)

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> "ObedientTools":
        return ObedientTools(request)


def _answer(request: EngineRequest) -> list[Delta]:
    sampling, asked = request.sampling, last_text(request.prompt_ids)
    constraint = sampling.structured
    if constraint is not None:
        if constraint.choices and constraint.choices[0].startswith(CALLS):
            return _calls(json.loads(constraint.choices[0].removeprefix(CALLS)))
        return _said(_kept(constraint, asked), sampling)
    thought = [Delta(index=0, reasoning="I think. ", token_ids=(1, 2))] if "think" in asked else []
    return thought + _said(_text(asked), sampling)


def _text(asked: str) -> str:
    """Fields that are to come in a form, as DSPy describes it, are all 1."""
    _, form, fields = asked.rpartition("Respond with ")
    names = re.findall(r"`(.+?)`", fields)
    if form and "JSON object" in fields:
        return json.dumps(dict.fromkeys(names, 1))
    if form and names:
        return "".join(f"{name}\n1\n\n" for name in names)
    return "on and " * 4096 if "endless" in asked else f"You said: {asked}"


def last_text(prompt_ids: Sequence[int]) -> str:
    """The last turn before the one that is asked for; of a prompt without turns, all of it."""
    text = cast(str, _TOKENIZER.decode(list(prompt_ids)))
    turns = [turn.partition("\n")[2] for turn in text.split("<|turn|>") if turn.endswith(_END)]
    last = turns[-1].removesuffix(_END) if turns else text
    # As a chat template without tools is shown what one has answered.
    return last.removeprefix("<tool_response>\n").removesuffix("\n</tool_response>")


def _said(text: str, sampling: SamplingParams) -> list[Delta]:
    """A delta a word, up to a stop text, or to as many tokens as there may be."""
    stop = min((s for s in sampling.stop if s in text), key=text.index, default=None)
    if stop is not None:
        kept = len(stop) if sampling.include_stop_str_in_output else 0
        text = text[: text.index(stop) + kept]
    left, deltas = sampling.max_tokens or 1, []
    for word in re.findall(r"\s*\S+\s*$|\s*\S+", text) or [text]:
        ids = tuple(_TOKENIZER.encode(word, add_special_tokens=False))[:left]
        piece = word if len(word.encode()) <= left else word[: len(ids)]
        left -= len(ids)
        deltas.append(Delta(index=0, text=piece, token_ids=ids, logprobs=_logprobs(ids, sampling)))
        if left == 0:
            return _ended(deltas, "length", None)
    return _ended(deltas, "stop", stop)


def _logprobs(ids: Sequence[int], sampling: SamplingParams) -> tuple[TokenLogprob, ...]:
    return () if sampling.logprobs is None else _scored(ids, sampling.logprobs)


def _prompt_logprobs(request: EngineRequest) -> tuple[TokenLogprob | None, ...] | None:
    top = request.sampling.prompt_logprobs
    return None if top is None else (None, *_scored(request.prompt_ids[1:], top))


def _scored(ids: Sequence[int], top: int) -> tuple[TokenLogprob, ...]:
    """Any token is as likely as any other, and the likeliest."""
    chosen = [TokenLogprob(cast(str, _TOKENIZER.decode([i])), i, -0.25, rank=1) for i in ids]
    return tuple(
        TokenLogprob(t.token, t.token_id, t.logprob, (t,) * min(top, 1), 1) for t in chosen
    )


def _ended(deltas: list[Delta], reason: FinishReason, stop: str | None) -> list[Delta]:
    return [*deltas, Delta(index=0, finish_reason=reason, stop_reason=stop)]


def _calls(calls: list[tuple[str, str]]) -> list[Delta]:
    """Each call in two pieces, as models write them."""
    deltas = []
    for index, (name, arguments) in enumerate(calls):
        half = len(arguments) // 2
        first = ToolCallDelta(index, f"call-{index}", name, arguments[:half])
        rest = ToolCallDelta(index, arguments=arguments[half:])
        deltas += [Delta(index=0, tool_calls=(piece,), token_ids=(3, 4)) for piece in (first, rest)]
    return _ended(deltas, "tool_calls", None)


def _kept(constraint: StructuredOutput, asked: str) -> str:
    match constraint.kind:
        case "json_schema":
            return json.dumps(example(json.loads(constraint.value), asked))
        case "json_object":
            found = re.search(r"\{.*\}", asked, re.DOTALL)
            if found and _is_json(found[0]):
                return found[0]
            return json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", asked) or ["answer"], "text"))
        case "choice":
            return next((c for c in constraint.choices if c in asked), constraint.choices[0])
        case _:
            return asked


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class ObedientTools(EchoTools):
    """Plans the calls as the request is bound, and leaves them to the engine."""

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        calls = planned_calls(self.request)
        if not calls:
            return sampling
        plan = CALLS + json.dumps(calls)
        return replace(sampling, structured=StructuredOutput("choice", choices=(plan,)))

    def parser(self) -> "ObedientCalls":
        return ObedientCalls("")


class ObedientCalls(EchoToolParser):
    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        return delta.text, delta.tool_calls


def planned_calls(request: ChatRequest) -> list[tuple[str, str]]:
    """What must be called, or what the last message names, in its order; then nothing more."""
    asked = request.messages[-1].content or ""
    choice = request.tool_choice
    if choice is not None and choice.kind == "named":
        tools = [tool for tool in request.tools if tool.name == choice.name]
    elif choice is not None and choice.kind == "required":
        tools = _named(request.tools, asked) or [request.tools[0]]
    elif (choice is not None and choice.kind == "none") or _is_answered(request.messages):
        tools = []
    else:
        tools = _named(request.tools, asked)
    if not request.parallel_tool_calls:
        tools = tools[:1]
    return [(t.name, json.dumps(example(json.loads(t.parameters), asked))) for t in tools]


def _is_answered(messages: Sequence[Message]) -> bool:
    return messages[-1].role == "tool"


def _named(tools: Sequence[Tool], text: str) -> list[Tool]:
    """Those whose name stands in the text, or else a long word of whose name does."""
    named = [tool for tool in tools if re.search(rf"\b{re.escape(tool.name)}\b", text)]
    if named:
        return sorted(named, key=lambda tool: text.index(tool.name))
    return [tool for tool in tools if any(word in text for word in _long_words(tool.name))]


def _long_words(name: str) -> list[str]:
    return [word for word in re.findall(r"[a-zA-Z]+", name) if len(word) > 5]


def example(schema: Mapping[str, object], text: str) -> object:
    """A value of the schema, with the numbers and the quoted texts of `text` in their order."""
    numbers = iter(re.findall(r"-?\b\d+(?:\.\d+)?\b", text))
    quoted = iter(re.findall(r"[\"'`“]([^\"'`”]+)[\"'`”]", text))
    defs = cast(
        Mapping[str, Mapping[str, object]], schema.get("$defs", schema.get("definitions", {}))
    )

    def value(part: Mapping[str, object], depth: int = 0) -> object:
        if "$ref" in part:
            return value(defs[str(part["$ref"]).rsplit("/", 1)[-1]], depth)
        if "const" in part:
            return part["const"]
        if "enum" in part:
            options = cast(list[object], part["enum"])
            return next((o for o in options if str(o) in text), options[0])
        for many in ("anyOf", "oneOf", "allOf"):
            if many in part:
                return value(cast(list[Mapping[str, object]], part[many])[0], depth)
        match part.get("type"):
            case "integer":
                return int(float(next(numbers, "1")))
            case "number":
                return float(next(numbers, "1"))
            case "boolean":
                return True
            case "null":
                return None
            case "array":
                items = cast(Mapping[str, object], part.get("items", {}))
                return [] if depth > 4 else [value(items, depth + 1)]
            case "string":
                return next(quoted, text[:20] or "text")
            case _:
                members = cast(Mapping[str, Mapping[str, object]], part.get("properties", {}))
                return {name: value(member, depth + 1) for name, member in members.items()}

    return value(schema)
