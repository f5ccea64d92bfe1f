"""One request, whole, in stages that hand on: resolved, checked, prepared, admitted, generated.

Streaming or not, HTTP or gRPC, it is the same context manager; leaving it in any way gives the
adapter's slot, the permit and the unused budget back, and writes the usage record.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec

from loragate.adapters.rendering.renderer import Renderer
from loragate.server.admission.admission import Admission, Arrival
from loragate.server.admission.deadlines import Deadlines
from loragate.server.core import ChatRequest, CompletionRequest, Delta, Request, Usage
from loragate.server.engine.protocol import Engine
from loragate.server.errors import AdapterUnavailable, EngineDead, InvalidRequest
from loragate.server.gateway.bounds import SMALL_PROMPT
from loragate.server.gateway.generator import Generator, Started
from loragate.server.gateway.preparation import Preparation
from loragate.server.gateway.resolver import Resolved, Resolver
from loragate.server.gateway.shadow import CapturedResponse, Shadows
from loragate.server.gateway.validation import check_token_ids
from loragate.server.telemetry.metrics import Metrics
from loragate.server.telemetry.usage import Record, UsageLog


class Generation:
    """An answer under way. `deltas` of different choices come interleaved; read them once."""

    def __init__(
        self,
        request: Request,
        record: Record,
        prompt_ids: tuple[tuple[int, ...], ...],
        deltas: AsyncIterator[Delta],
        renderer: Renderer,
    ) -> None:
        self.id = record.request_id
        self.created = int(time.time())
        self.request = request
        self.model = request.model
        self.route = record.route
        self.prompt_ids = prompt_ids
        self.deltas = deltas
        self.renderer = renderer
        self._record = record

    def prompt_of(self, index: int) -> tuple[int, ...]:
        """The token ids of the prompt that choice `index` answers."""
        return self.prompt_ids[index // self.request.sampling.n]

    def echo(self, index: int) -> str:
        """What `echo` puts before choice `index`: its prompt, or the words of ours it continues."""
        if not self.request.echo:
            return ""
        if isinstance(self.request, ChatRequest):
            last = self.request.messages[-1]
            return (last.content or "") if last.role == "assistant" else ""
        prompt = self.request.prompts[index // self.request.sampling.n]
        return prompt if isinstance(prompt, str) else self.renderer.decode(prompt)

    @property
    def usage(self) -> Usage:
        """Tokens so far; it grows while deltas are read."""
        return self._record.usage


class Tokenized(msgspec.Struct, frozen=True):
    """A prompt's token ids, and each as the vocabulary writes it where that was asked for."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: Sequence[str] | None


class Gateway:
    """Answers requests that have arrived; see `Arrivals`."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        preparation: Preparation,
        admission: Admission,
        generator: Generator,
        engine: Engine,
        shadows: Shadows,
        usage: UsageLog,
        metrics: Metrics,
        deadlines: Deadlines,
    ) -> None:
        self._resolver = resolver
        self._preparation = preparation
        self._admission = admission
        self._generator = generator
        self._engine = engine
        self._shadows = shadows
        self._usage = usage
        self._metrics = metrics
        self._deadlines = deadlines

    @asynccontextmanager
    async def generate(self, request: Request, arrival: Arrival) -> AsyncIterator[Generation]:
        """Yields the answer once its first delta is there, so that an error still has a status.

        Raises what errors.py lists. Leaving the context ends the request, wherever it is.
        """
        caller = arrival.caller
        resolved = await self._resolver.resolve(request, arrival)
        with (
            self._metrics.under_way(resolved.route),
            self._usage.record(
                caller.request_id, resolved.route, caller.transport, resolved.end
            ) as record,
        ):
            async with self._deadlines.deadline(), AsyncExitStack() as stack:
                answer = partial(self._answer, request, arrival, record, resolved)
                try:
                    generation = await stack.enter_async_context(answer())
                except AdapterUnavailable as error:
                    if not resolved.fall_back(error):
                        raise
                    record.route = resolved.route
                    generation = await stack.enter_async_context(answer())
                captured = self._shadows.capture(resolved.assignment, request)
                if captured is not None:
                    generation.deltas = _captured_by(captured, generation.deltas)
                yield generation
        if captured is not None:
            self._shadows.submit(captured)

    async def tokenize(self, request: Request, arrival: Arrival, *, strings: bool) -> Tokenized:
        """The request's one prompt as `generate` makes it, before it is cut. Raises ModelNotFound,
        InvalidRequest, and ContextLengthExceeded where a text is far longer than the context.
        """
        resolved = await self._resolver.resolve(request, arrival)
        await self._preparation.check(request, arrival)
        ids, *others = await self._preparation.token_ids(request, arrival, resolved.route)
        if others:
            raise InvalidRequest("Send one prompt; several are several requests.", param="prompt")
        to_strings = self._preparation.renderer.tokenizer.convert_ids_to_tokens
        turn = partial(self._preparation.threads.do, arrival.tenant, len(ids) > SMALL_PROMPT)
        written = await turn(to_strings, list(ids)) if strings else None
        return Tokenized(len(ids), self._engine.model.max_model_len, ids, written)

    async def detokenize(self, model: str, ids: Sequence[int], arrival: Arrival) -> str:
        """Raises ModelNotFound, and InvalidRequest where an id is none of the vocabulary."""
        await self._resolver.resolve(CompletionRequest(model, ()), arrival)

        def decode() -> str:
            check_token_ids("tokens", ids, self._engine.model.vocab_size)
            return self._preparation.renderer.decode(ids)

        return await self._preparation.threads.do(arrival.tenant, len(ids) > SMALL_PROMPT, decode)

    @asynccontextmanager
    async def _answer(
        self, request: Request, arrival: Arrival, record: Record, resolved: Resolved
    ) -> AsyncIterator[Generation]:
        """By the record's route."""
        await self._preparation.check(request, arrival)
        if record.route.mode == "unmerged" and not self._engine.is_alive:
            raise EngineDead(
                "The engine is down; try again shortly.",
                retry_after_seconds=self._engine.retry_after_seconds,
            )
        resolved.count(record.request_id)
        prepared = await self._preparation.prepare(request, arrival, record.route)
        record.prompt_tokens = prepared.prompt_tokens
        prepared = await self._preparation.bind(prepared, request, arrival, record.route)
        if not self._preparation.fits(prepared, request, record.route):
            record.route = resolved.unmerge()
        async with self._admission.admit(
            arrival, record.route, prepared.most_tokens, prepared.prompt_tokens
        ) as reservation:
            started = Started()
            try:
                async with AsyncExitStack() as held:
                    begin = partial(
                        self._generator.begin,
                        held,
                        request,
                        prepared,
                        record,
                        reservation,
                        started,
                    )
                    try:
                        deltas = await begin()
                    except EngineDead:
                        if record.route.mode == "unmerged":
                            raise
                        record.route = resolved.unmerge()
                        await held.aclose()  # before another engine's grant is waited for
                        await reservation.acquire_grant(record.route)
                        deltas = await begin()
                    yield Generation(
                        request, record, prepared.prompt_ids, deltas, self._preparation.renderer
                    )
            finally:
                reservation.settle(started.prompt_tokens + record.completion_tokens)


async def _captured_by(
    captured: CapturedResponse, deltas: AsyncIterator[Delta]
) -> AsyncIterator[Delta]:
    async for delta in deltas:
        captured.add(delta)
        yield delta
