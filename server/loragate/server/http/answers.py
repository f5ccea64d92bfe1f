"""Generations in OpenAI's words, as JSON bytes. The per-token path encodes msgspec structs only.

Field order and presence follow https://platform.openai.com/docs/api-reference/chat/streaming. What
vLLM's server adds to an answer, a choice or a chunk is there, as null where it was not asked for:
clients read these as attributes.
"""

from collections.abc import AsyncIterator, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import (
    ChatRequest,
    Delta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from loragate.server.gateway.choices import (
    Choice,
    collect,
    has_many_scores,
    reported_alternatives,
    says_something,
)
from loragate.server.gateway.gateway import Generation
from loragate.server.http.failures import error_body

_encoder = msgspec.json.Encoder()
_LOWEST_LOGPROB = -9999.0
_DONE = b"data: [DONE]\n\n"
_PromptLogprobs = list[dict[str, object] | None]


class _CachedTokens(msgspec.Struct):
    cached_tokens: int


class _ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _CachedTokens
    completion_tokens_details: _ReasoningTokens | UnsetType = UNSET


class _TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _ContentLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[_TopLogprob]


class _ChatLogprobs(msgspec.Struct):
    content: list[_ContentLogprob]
    refusal: None = None


class _TextLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class _Function(msgspec.Struct, omit_defaults=True):
    arguments: str
    name: str | None = None


class _ToolCallPiece(msgspec.Struct, omit_defaults=True):
    index: int
    function: _Function
    id: str | None = None
    type: str | None = None


class _WholeToolCall(msgspec.Struct):
    id: str
    function: _Function
    type: str = "function"


class _ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, by vLLM's newer name
    tool_calls: list[_ToolCallPiece] | None = None


class _ChatChunkChoice(msgspec.Struct):
    index: int
    delta: _ChatDelta
    logprobs: _ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: tuple[int, ...] | None = None


class _TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: _TextLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: Sequence[int] | None = None
    prompt_token_ids: Sequence[int] | None = None
    prompt_logprobs: _PromptLogprobs | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    reasoning_content: str | None = None
    reasoning: str | UnsetType = UNSET  # the same, by vLLM's newer name
    tool_calls: list[_WholeToolCall] | UnsetType = UNSET


class _ChatChoice(msgspec.Struct):
    index: int
    message: _Message
    logprobs: _ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: Sequence[int] | None = None


class _Answer(msgspec.Struct):
    """Whole, or a chunk. A text completion says what is of its prompts in its choices."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[_ChatChoice | _ChatChunkChoice | _TextChoice]
    usage: _Usage | UnsetType | None = UNSET
    prompt_token_ids: Sequence[int] | UnsetType | None = UNSET
    prompt_logprobs: _PromptLogprobs | UnsetType | None = UNSET


class _WholeAnswer(_Answer):
    service_tier: None = None
    system_fingerprint: None = None
    kv_transfer_params: None = None


class Writer:
    """Puts one generation into OpenAI's form, streamed or whole."""

    def __init__(self, generation: Generation, threads: FairThreads) -> None:
        """`threads` are for answers with log-probabilities of many tokens."""
        self._generation = generation
        self._threads = threads
        self._options = generation.request.options
        self._is_chat = isinstance(generation.request, ChatRequest)
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{generation.id}"
        self._offsets: dict[int, int] = {}  # characters of each text choice written so far
        self._begun: set[int] = set()

    async def whole(self) -> bytes:
        """The complete answer, after the last token."""
        choices = await collect(self._generation)
        is_large = any(map(has_many_scores, choices))
        return await self._threads.do(self._generation.route.tenant, is_large, self._whole, choices)

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, one a delta, then usage where it was asked for, then [DONE]."""
        tenant = self._generation.route.tenant
        async for delta in self._generation.deltas:
            if has_many_scores(delta):
                yield await self._threads.do(tenant, True, self._events, delta)
            elif events := self._events(delta):
                yield events
        if self._options.include_usage:
            yield _event(self._chunk([], self._generation.usage))
        yield _DONE

    def failed(self, error: Exception) -> bytes:
        """What ends a stream that has begun."""
        return b"data: " + error_body(error, self._generation.id) + b"\n\n" + _DONE

    def _whole(self, choices: Sequence[Choice]) -> bytes:
        made = self._generation
        answer = _WholeAnswer(
            id=self._id,
            object="chat.completion" if self._is_chat else "text_completion",
            created=made.created,
            model=made.model,
            choices=[
                self._chat_choice(c) if self._is_chat else self._text_choice(c) for c in choices
            ],
            usage=_usage(made.usage),
        )
        if self._is_chat:
            with_ids = self._options.return_token_ids
            answer.prompt_token_ids = made.prompt_ids[0] if with_ids else None
            scored = choices[0].prompt_logprobs if choices else None
            answer.prompt_logprobs = _vllm_prompt_logprobs(scored)
        return _encoder.encode(answer)

    def _events(self, delta: Delta) -> bytes:
        return b"".join(map(_event, self._chunks(delta)))

    def _chunks(self, delta: Delta) -> list[_Answer]:
        chunks: list[_Answer] = []
        usage = self._generation.usage if self._options.has_usage_in_chunks else None
        if self._is_chat and delta.index not in self._begun:
            is_first = not self._begun
            self._begun.add(delta.index)
            first = _ChatDelta(role="assistant", content=self._generation.echo(delta.index))
            before = usage and usage.less(len(delta.token_ids))
            none_yet = () if self._options.return_token_ids else None
            choice = _ChatChunkChoice(delta.index, first, None, None, token_ids=none_yet)
            chunk = self._chunk([choice], before)
            if is_first and self._options.return_token_ids:
                chunk.prompt_token_ids = self._generation.prompt_ids[0]
            chunks.append(chunk)
        if says_something(delta, self._options):
            choice = self._chat_chunk(delta) if self._is_chat else self._text_chunk(delta)
            chunk = self._chunk([choice], usage)
            if self._is_chat:
                chunk.prompt_logprobs = _vllm_prompt_logprobs(delta.prompt_logprobs)
            chunks.append(chunk)
        return chunks

    def _chunk(self, choices: list[_ChatChunkChoice | _TextChoice], usage: Usage | None) -> _Answer:
        """Where a chat's token ids were asked for, its first chunk alone says those of its prompt,
        and the others do not name them, as in vLLM.
        """
        made = self._generation
        of_prompt = None if self._is_chat else UNSET
        return _Answer(
            id=self._id,
            object="chat.completion.chunk" if self._is_chat else "text_completion",
            created=made.created,
            model=made.model,
            choices=choices,
            usage=_usage(usage) if usage else None if self._options.include_usage else UNSET,
            prompt_token_ids=UNSET if self._options.return_token_ids else of_prompt,
            prompt_logprobs=of_prompt,
        )

    def _chat_chunk(self, delta: Delta) -> _ChatChunkChoice:
        return _ChatChunkChoice(
            index=delta.index,
            delta=_ChatDelta(
                content=delta.text or None,
                reasoning_content=delta.reasoning or None,
                reasoning=delta.reasoning or None,
                tool_calls=[_tool_call_piece(piece) for piece in delta.tool_calls] or None,
            ),
            logprobs=self._chat_logprobs(delta.logprobs),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids if self._options.return_token_ids else None,
        )

    def _chat_choice(self, choice: Choice) -> _ChatChoice:
        text = self._generation.echo(choice.index) + choice.text
        return _ChatChoice(
            index=choice.index,
            message=_Message(
                role="assistant",
                content=text if text or not choice.tool_calls else None,
                reasoning_content=choice.reasoning or None,
                reasoning=choice.reasoning or UNSET,
                tool_calls=[_whole_tool_call(call) for call in choice.tool_calls] or UNSET,
            ),
            logprobs=self._chat_logprobs(choice.logprobs),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self._options.return_token_ids else None,
        )

    def _text_chunk(self, delta: Delta) -> _TextChoice:
        is_first = delta.index not in self._begun
        self._begun.add(delta.index)
        with_ids = self._options.return_token_ids
        return _TextChoice(
            index=delta.index,
            text=(self._generation.echo(delta.index) if is_first else "") + delta.text,
            logprobs=self._text_logprobs(delta.index, delta.prompt_logprobs, delta.logprobs),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids if with_ids else None,
            prompt_token_ids=self._generation.prompt_of(delta.index)
            if with_ids and is_first
            else None,
            prompt_logprobs=self._text_prompt_logprobs(delta.prompt_logprobs),
        )

    def _text_choice(self, choice: Choice) -> _TextChoice:
        with_ids = self._options.return_token_ids
        scored = choice.prompt_logprobs
        return _TextChoice(
            index=choice.index,
            text=self._generation.echo(choice.index) + choice.text,
            logprobs=self._text_logprobs(choice.index, scored, choice.logprobs),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if with_ids else None,
            prompt_token_ids=self._generation.prompt_of(choice.index) if with_ids else None,
            prompt_logprobs=self._text_prompt_logprobs(scored),
        )

    def _text_prompt_logprobs(
        self, scored: Sequence[TokenLogprob | None] | None
    ) -> _PromptLogprobs | None:
        """None where they are there for `echo` alone, among whose log-probabilities they are."""
        is_asked = self._generation.request.sampling.prompt_logprobs is not None
        return _vllm_prompt_logprobs(scored) if is_asked else None

    def _token(self, entry: TokenLogprob) -> str:
        if self._options.return_tokens_as_token_ids:
            return f"token_id:{entry.token_id}"
        return entry.token

    def _chat_logprobs(self, entries: Sequence[TokenLogprob]) -> _ChatLogprobs | None:
        sampling = self._generation.request.sampling
        if sampling.logprobs is None or not entries:
            return None
        most = reported_alternatives(sampling)
        return _ChatLogprobs(
            [
                _ContentLogprob(
                    self._token(entry),
                    _finite(entry.logprob),
                    list(entry.token.encode()),
                    [
                        _TopLogprob(
                            self._token(top), _finite(top.logprob), list(top.token.encode())
                        )
                        for top in entry.top[:most]
                    ],
                )
                for entry in entries
            ]
        )

    def _text_logprobs(
        self,
        index: int,
        prompt: Sequence[TokenLogprob | None] | None,
        entries: Sequence[TokenLogprob],
    ) -> _TextLogprobs | None:
        request = self._generation.request
        if request.sampling.logprobs is None:
            return None
        scored: list[TokenLogprob | None] = list(prompt or ()) if request.echo else []
        scored += entries
        logprobs = _TextLogprobs([], [], [], [])
        for entry in scored:
            text = self._first_prompt_token(index) if entry is None else self._token(entry)
            offset = self._offsets.get(index, 0)
            self._offsets[index] = offset + len(text)
            logprobs.text_offset.append(offset)
            logprobs.tokens.append(text)
            logprobs.token_logprobs.append(None if entry is None else _finite(entry.logprob))
            logprobs.top_logprobs.append(
                None
                if entry is None
                # The chosen one first, as in vLLM: it may be none of the likeliest.
                else {self._token(each): _finite(each.logprob) for each in (entry, *entry.top)}
                if entry.top
                else {}
            )
        return logprobs

    def _first_prompt_token(self, index: int) -> str:
        """It follows nothing, so it has a text but no probability."""
        first = self._generation.prompt_of(index)[0]
        if self._options.return_tokens_as_token_ids:
            return f"token_id:{first}"
        return self._generation.renderer.decode((first,))


def _event(answer: _Answer) -> bytes:
    return b"data: " + _encoder.encode(answer) + b"\n\n"


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI says -9999.0 of what is as good as impossible."""
    return max(logprob, _LOWEST_LOGPROB)


def _usage(usage: Usage) -> _Usage:
    return _Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        _CachedTokens(usage.cached_tokens),
        _ReasoningTokens(usage.reasoning_tokens) if usage.reasoning_tokens else UNSET,
    )


def _tool_call_piece(piece: ToolCallDelta) -> _ToolCallPiece:
    return _ToolCallPiece(
        index=piece.index,
        id=piece.id,
        type="function" if piece.id else None,
        function=_Function(piece.arguments, piece.name),
    )


def _whole_tool_call(call: ToolCall) -> _WholeToolCall:
    return _WholeToolCall(call.id, _Function(call.arguments, call.name))


def _vllm_prompt_logprobs(
    entries: Sequence[TokenLogprob | None] | None,
) -> _PromptLogprobs | None:
    """vLLM's form: one mapping a prompt token, from token id to its log-probability and text."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(each.token_id): {
                "logprob": _finite(each.logprob),
                "rank": each.rank,
                "decoded_token": each.token,
            }
            for each in (entry, *entry.top)
        }
        for entry in entries
    ]
