"""Deltas gathered into whole choices, for answers that are not streamed."""

from dataclasses import dataclass, field

from loragate.server.core import (
    Delta,
    FinishReason,
    Options,
    SamplingParams,
    TokenLogprob,
    ToolCall,
)
from loragate.server.gateway.bounds import SMALL_SCORES
from loragate.server.gateway.gateway import Generation


@dataclass(slots=True)
class _PartialCall:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Choice:
    """One complete answer of a generation."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


def says_something(delta: Delta, options: Options) -> bool:
    """False for a delta that no client can see, such as one with half of a character."""
    return bool(
        delta.text
        or delta.reasoning
        or delta.tool_calls
        or delta.finish_reason
        or delta.logprobs
        or delta.prompt_logprobs
        or (delta.token_ids and options.return_token_ids)
    )


def reported_alternatives(sampling: SamplingParams) -> int:
    """How many of a token's alternatives are the client's. Of those that it named, all, with the
    chosen token; else as many of the likeliest as it asked for, to which the engine has added the
    chosen token where it was not among them.
    """
    named = len(sampling.logprob_token_ids)
    return named + 1 if named else sampling.logprobs or 0


def has_many_scores(answered: Delta | Choice) -> bool:
    """Whether it has log-probabilities of so many tokens that writing it is for a thread."""
    return len(answered.logprobs) + len(answered.prompt_logprobs or ()) > SMALL_SCORES


async def collect(generation: Generation) -> list[Choice]:
    """Reads the generation to its end. Returns its choices in order of their index."""
    choices: dict[int, Choice] = {}
    texts: dict[int, list[str]] = {}
    calls: dict[int, dict[int, _PartialCall]] = {}
    async for delta in generation.deltas:
        choice = choices.setdefault(delta.index, Choice(delta.index))
        texts.setdefault(delta.index, []).append(delta.text)
        choice.token_ids.extend(delta.token_ids)
        choice.logprobs.extend(delta.logprobs)
        choice.reasoning += delta.reasoning
        choice.finish_reason = delta.finish_reason or choice.finish_reason
        if delta.stop_reason is not None:
            choice.stop_reason = delta.stop_reason
        if delta.prompt_logprobs is not None:
            choice.prompt_logprobs = delta.prompt_logprobs
        for piece in delta.tool_calls:
            call = calls.setdefault(delta.index, {}).setdefault(piece.index, _PartialCall())
            call.id = piece.id or call.id
            call.name = piece.name or call.name
            call.arguments.append(piece.arguments)
    for index, choice in choices.items():
        choice.text = "".join(texts[index])
        choice.tool_calls = tuple(
            ToolCall(call.id, call.name, "".join(call.arguments))
            for _, call in sorted(calls.get(index, {}).items())
        )
    return [choices[index] for index in sorted(choices)]
