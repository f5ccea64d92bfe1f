"""An admitted request in its engine: its sequences, their deltas, and the tools that they call."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

import msgspec

from loragate.server.admission.admission import Reservation
from loragate.server.core import ChatRequest, Delta, Request, SamplingParams
from loragate.server.engine.protocol import (
    Engine,
    EngineRequest,
    LoadedAdapter,
    ReasoningParser,
    ReasoningSession,
    ToolCallParser,
    ToolSession,
)
from loragate.server.gateway.prompting import Prepared
from loragate.server.gateway.streams import merge, prepend
from loragate.server.merged.models import MergedModels
from loragate.server.residency.residency import Residency
from loragate.server.telemetry.usage import Record


@dataclass(slots=True)
class Started:
    """What of a request the engine has been given: it is used, whether or not anybody reads on."""

    prompt_tokens: int = 0


class Generator:
    """Runs requests by their records' routes, in the base model's engine or a merged model's."""

    def __init__(self, merged: MergedModels, residency: Residency) -> None:
        self._merged = merged
        self._residency = residency

    async def begin(
        self,
        held: AsyncExitStack,
        request: Request,
        prepared: Prepared,
        record: Record,
        reservation: Reservation,
        started: Started,
    ) -> AsyncIterator[Delta]:
        """Deltas by the record's route, of which the first has come; `held` gets what they need."""
        engine = held.enter_context(self._merged.acquire(record.route))
        adapter = await held.enter_async_context(self._residency.acquire(record.route))
        deltas = self._run(engine, request, prepared, adapter, record, reservation, started)
        counted = record.count(deltas, reservation.charge)
        answers = await held.enter_async_context(aclosing(counted))
        return prepend(await anext(answers), answers)

    def _run(
        self,
        engine: Engine,
        request: Request,
        prepared: Prepared,
        adapter: LoadedAdapter | None,
        record: Record,
        reservation: Reservation,
        started: Started,
    ) -> AsyncGenerator[Delta, None]:
        sampling = prepared.sampling
        salt = f"{record.route.tenant}:{request.options.cache_salt}"
        # A client may choose one request id twice, and so may two tenants; the engine's is its own.
        engine_id = f"{record.request_id}-{uuid.uuid4().hex}"
        streams = [
            _sequence(
                engine,
                EngineRequest(f"{engine_id}-{i}-{j}", ids, one_of_them, adapter, salt),
                i * sampling.n + j,
                0 if j else len(ids),
                reservation,
                started,
            )
            for i, ids in enumerate(prepared.prompt_ids)
            for j, one_of_them in enumerate(_one_by_one(sampling))
        ]
        deltas = merge(streams)
        if prepared.reasoning is not None:
            is_told = isinstance(request, ChatRequest) and request.include_reasoning
            deltas = _split_reasoning(deltas, prepared.reasoning, is_told=is_told)
        return deltas if prepared.tools is None else _split_tool_calls(deltas, prepared.tools)


def _one_by_one(sampling: SamplingParams) -> Sequence[SamplingParams]:
    """A request's choices, each to be computed by itself, so that each has a permit of its own.

    Seeds follow each other, as the engine's own would. Greedy choices are all the same; the engine
    computes them once.
    """
    if sampling.n == 1 or sampling.temperature == 0:
        return (sampling,)
    seed = sampling.seed
    return [
        replace(sampling, n=1, seed=None if seed is None else _as_int64(seed + j))
        for j in range(sampling.n)
    ]


def _as_int64(number: int) -> int:
    """After the largest comes the smallest: the engine's core would end at one more."""
    return (number + 2**63) % 2**64 - 2**63


async def _sequence(
    engine: Engine,
    request: EngineRequest,
    index: int,
    prompt_tokens: int,
    reservation: Reservation,
    started: Started,
) -> AsyncGenerator[Delta, None]:
    """Waits for its permit, runs with it, and gives it back. `index` is its first choice's among
    those of the request; `prompt_tokens` are 0 for further choices of one prompt, which is counted
    once.
    """
    async with reservation.permit() as rank:
        started.prompt_tokens += prompt_tokens
        is_refused = True
        async with aclosing(engine.generate(replace(request, rank=rank))) as deltas:
            try:
                async for delta in deltas:
                    is_refused = False
                    cached_tokens = delta.cached_tokens if prompt_tokens else 0
                    if index or cached_tokens != delta.cached_tokens:
                        delta = msgspec.structs.replace(
                            delta, index=delta.index + index, cached_tokens=cached_tokens
                        )
                    yield delta
            except Exception:
                # It has computed nothing. A client that has left is another matter: what it asked
                # for has been begun.
                if is_refused:
                    started.prompt_tokens -= prompt_tokens
                raise


async def _split_reasoning(
    deltas: AsyncGenerator[Delta, None], reasoning: ReasoningSession, *, is_told: bool
) -> AsyncGenerator[Delta, None]:
    """Tells what is thought aloud from the answer, choice by choice."""
    parsers: dict[int, ReasoningParser] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            parser = parsers.get(delta.index) or parsers.setdefault(delta.index, reasoning.parser())
            thought = parser.push(delta)
            yield msgspec.structs.replace(
                delta,
                text=thought.content,
                reasoning=thought.reasoning if is_told else "",
                reasoning_tokens=thought.tokens,
            )


async def _split_tool_calls(
    deltas: AsyncGenerator[Delta, None], tools: ToolSession
) -> AsyncGenerator[Delta, None]:
    """Tells text from tool calls, choice by choice; a choice that called ends with `tool_calls`."""
    parsers: dict[int, ToolCallParser] = {}
    called: set[int] = set()
    async with aclosing(deltas):
        async for delta in deltas:
            parser = parsers.get(delta.index) or parsers.setdefault(delta.index, tools.parser())
            text, calls = parser.push(delta)
            if calls:
                called.add(delta.index)
            reason = delta.finish_reason
            if reason == "stop" and delta.index in called:
                reason = "tool_calls"
            yield msgspec.structs.replace(delta, text=text, tool_calls=calls, finish_reason=reason)
