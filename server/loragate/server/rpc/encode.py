"""What the gateway gives back, as gRPC messages: the other direction of `decode`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from loragate.server.core import (
    Delta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from loragate.server.gateway.choices import Choice, reported_alternatives, says_something
from loragate.server.gateway.gateway import Generation
from loragate.server.gateway.routing import ModelCard
from loragate.v1 import inference_pb2 as pb

Chunk = TypeVar("Chunk", pb.ChatChunk, pb.CompletionChunk)


def chat_response(generation: Generation, choices: Sequence[Choice]) -> pb.ChatResponse:
    options = generation.request.options
    scored = choices[0].prompt_logprobs if choices else None
    return pb.ChatResponse(
        id=_chat_id(generation),
        created=generation.created,
        model=generation.model,
        choices=[_chat_choice(generation, choice) for choice in choices],
        usage=usage(generation.usage),
        prompt_logprobs=_prompt_logprobs(generation, scored),
        prompt_token_ids=generation.prompt_ids[0] if options.return_token_ids else None,
    )


def completion_response(generation: Generation, choices: Sequence[Choice]) -> pb.CompletionResponse:
    return pb.CompletionResponse(
        id=_completion_id(generation),
        created=generation.created,
        model=generation.model,
        choices=[_completion_choice(generation, choice) for choice in choices],
        usage=usage(generation.usage),
    )


class _Chunks(ABC, Generic[Chunk]):
    """Writes one stream; remembers which choices have begun."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._options = generation.request.options
        self._begun: set[int] = set()

    def chunk(self, delta: Delta) -> Chunk | None:
        """None for a delta that has nothing to say yet, such as half of a character."""
        begins = delta.index not in self._begun
        if not begins and not says_something(delta, self._options):
            return None
        chunk = self._empty(self._options.has_usage_in_chunks)
        self._fill(chunk, delta, begins)
        self._begun.add(delta.index)
        return chunk

    def last(self) -> Chunk | None:
        """What closes a stream whose client asked for the usage."""
        return self._empty(True) if self._options.include_usage else None

    @abstractmethod
    def _empty(self, with_usage: bool) -> Chunk: ...

    @abstractmethod
    def _fill(self, chunk: Chunk, delta: Delta, begins: bool) -> None:
        """Adds the delta's choice; `begins` says whether it is the choice's first."""

    def _text(self, delta: Delta, begins: bool) -> str:
        return (self._generation.echo(delta.index) if begins else "") + delta.text


class ChatChunks(_Chunks[pb.ChatChunk]):
    def _empty(self, with_usage: bool) -> pb.ChatChunk:
        made = self._generation
        return pb.ChatChunk(
            id=_chat_id(made),
            created=made.created,
            model=made.model,
            usage=usage(made.usage) if with_usage else None,
        )

    def _fill(self, chunk: pb.ChatChunk, delta: Delta, begins: bool) -> None:
        made, with_ids = self._generation, self._options.return_token_ids
        choice = pb.ChatChunkChoice(
            index=delta.index,
            delta=pb.ChatDelta(
                role="assistant" if begins else None,
                content=self._text(delta, begins) or None,
                reasoning=delta.reasoning or None,
                tool_calls=map(_tool_call_delta, delta.tool_calls),
            ),
            logprobs=_logprobs(made, delta.logprobs),
            finish_reason=delta.finish_reason,
            stop_reason=_stop_reason(delta.stop_reason),
            token_ids=delta.token_ids if with_ids else None,
        )
        chunk.choices.append(choice)
        chunk.prompt_logprobs.extend(_prompt_logprobs(made, delta.prompt_logprobs))
        if with_ids and not self._begun:
            chunk.prompt_token_ids.extend(made.prompt_ids[0])


class CompletionChunks(_Chunks[pb.CompletionChunk]):
    def _empty(self, with_usage: bool) -> pb.CompletionChunk:
        made = self._generation
        return pb.CompletionChunk(
            id=_completion_id(made),
            created=made.created,
            model=made.model,
            usage=usage(made.usage) if with_usage else None,
        )

    def _fill(self, chunk: pb.CompletionChunk, delta: Delta, begins: bool) -> None:
        made, with_ids = self._generation, self._options.return_token_ids
        choice = pb.CompletionChunkChoice(
            index=delta.index,
            text=self._text(delta, begins),
            logprobs=_logprobs(made, delta.logprobs),
            finish_reason=delta.finish_reason,
            stop_reason=_stop_reason(delta.stop_reason),
            token_ids=delta.token_ids if with_ids else None,
            prompt_logprobs=_prompt_logprobs(made, delta.prompt_logprobs),
            prompt_token_ids=made.prompt_of(delta.index) if with_ids and begins else None,
        )
        chunk.choices.append(choice)


def usage(counted: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.total_tokens,
        cached_tokens=counted.cached_tokens,
        reasoning_tokens=counted.reasoning_tokens,
    )


def model(card: ModelCard) -> pb.Model:
    return pb.Model(
        id=card.id,
        created=card.created,
        owned_by=card.owned_by,
        parent=card.parent,
        adapter=card.adapter,
        digest=card.digest,
        root=card.root,
        max_model_len=card.max_model_len,
    )


def _chat_id(generation: Generation) -> str:
    return f"chatcmpl-{generation.id}"


def _completion_id(generation: Generation) -> str:
    return f"cmpl-{generation.id}"


def _chat_choice(generation: Generation, choice: Choice) -> pb.ChatChoice:
    text = generation.echo(choice.index) + choice.text
    return pb.ChatChoice(
        index=choice.index,
        message=pb.AssistantMessage(
            role="assistant",
            content=text if text or not choice.tool_calls else None,
            reasoning=choice.reasoning or None,
            tool_calls=map(_tool_call, choice.tool_calls),
        ),
        logprobs=_logprobs(generation, choice.logprobs),
        finish_reason=choice.finish_reason or "",
        stop_reason=_stop_reason(choice.stop_reason),
        token_ids=choice.token_ids if generation.request.options.return_token_ids else None,
    )


def _completion_choice(generation: Generation, choice: Choice) -> pb.CompletionChoice:
    with_ids = generation.request.options.return_token_ids
    return pb.CompletionChoice(
        index=choice.index,
        text=generation.echo(choice.index) + choice.text,
        logprobs=_logprobs(generation, choice.logprobs),
        finish_reason=choice.finish_reason or "",
        stop_reason=_stop_reason(choice.stop_reason),
        token_ids=choice.token_ids if with_ids else None,
        prompt_logprobs=_prompt_logprobs(generation, choice.prompt_logprobs),
        prompt_token_ids=generation.prompt_of(choice.index) if with_ids else None,
    )


def _tool_call(call: ToolCall) -> pb.ToolCall:
    return pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments)


def _tool_call_delta(piece: ToolCallDelta) -> pb.ToolCallDelta:
    return pb.ToolCallDelta(
        index=piece.index, id=piece.id, name=piece.name, arguments=piece.arguments
    )


def _stop_reason(reason: int | str | None) -> pb.StopReason | None:
    match reason:
        case None:
            return None
        case str():
            return pb.StopReason(text=reason)
        case int():
            return pb.StopReason(token_id=reason)


def _logprobs(generation: Generation, entries: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    sampling = generation.request.sampling
    if sampling.logprobs is None:
        return []
    most = reported_alternatives(sampling)
    as_ids = generation.request.options.return_tokens_as_token_ids
    return [_logprob(entry, most, as_ids) for entry in entries]


def _prompt_logprobs(
    generation: Generation, entries: Iterable[TokenLogprob | None] | None
) -> list[pb.PromptLogprob]:
    sampling = generation.request.sampling
    asked = sampling.logprobs if sampling.prompt_logprobs is None else sampling.prompt_logprobs
    as_ids = generation.request.options.return_tokens_as_token_ids
    return [
        pb.PromptLogprob(token=_logprob(entry, asked or 0, as_ids) if entry else None)
        for entry in entries or ()
    ]


def _logprob(entry: TokenLogprob, most: int, as_ids: bool) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=f"token_id:{entry.token_id}" if as_ids else entry.token,
        token_id=entry.token_id,
        logprob=entry.logprob,
        top_logprobs=[_logprob(top, 0, as_ids) for top in entry.top[:most]],
        rank=entry.rank,
    )
