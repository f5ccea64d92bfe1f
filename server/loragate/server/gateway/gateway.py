"""One request, whole: who asks, where it goes, whether it may, what it used.

The only way in for every transport. Streaming or not, HTTP or gRPC, it is the same context manager;
leaving it in any way gives the lease, the place in the queue and the unused budget back, and writes
the usage record.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec

from loragate.adapters.errors import AliasNotServing
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.snapshot import Limits, SnapshotWatcher
from loragate.server.admission.admission import Admission, Arrival, Ticket
from loragate.server.admission.deadlines import Deadlines
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import Caller, ChatRequest, Delta, Request, Route, SamplingParams, Usage
from loragate.server.engine.grammars.compiler import Grammars
from loragate.server.engine.protocol import (
    Engine,
    EngineRequest,
    LoadedAdapter,
    ToolCallParser,
    ToolSession,
)
from loragate.server.errors import AdapterUnavailable, Draining, EngineDead, RateLimited, describe
from loragate.server.experiments.assignment import unit_of
from loragate.server.experiments.feedback import Feedback, FeedbackDesk
from loragate.server.experiments.places import Place, Places
from loragate.server.gateway.auth import Tenants
from loragate.server.gateway.prompting import Prepared, PromptBuilder, contract_of
from loragate.server.gateway.request_size import is_large
from loragate.server.gateway.routing import ModelCard, Router
from loragate.server.gateway.shadow import Heard, Shadows
from loragate.server.gateway.streams import merge, prepend
from loragate.server.gateway.validation import RequestLimits, validate
from loragate.server.merged.models import MergedModels
from loragate.server.residency.residency import Residency
from loragate.server.telemetry.metrics import Metrics
from loragate.server.telemetry.usage import Record, UsageLog

Viewed = TypeVar("Viewed")
_FIRST_VERSION_SECONDS = 5.0
_MOST_AWAIT_FIRST_VERSION = 16  # of one tenant
_LOOK_AGAIN_SECONDS = 0.02


class Generation:
    """An answer under way. `deltas` of different choices come interleaved; read them once."""

    def __init__(
        self,
        request: Request,
        record: Record,
        prompt_ids: tuple[tuple[int, ...], ...],
        deltas: AsyncIterator[Delta],
        builder: PromptBuilder,
    ) -> None:
        self.id = record.request_id
        self.created = int(time.time())
        self.request = request
        self.model = request.model
        self.route = record.route
        self.prompt_ids = prompt_ids
        self.deltas = deltas
        self.builder = builder
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
        return prompt if isinstance(prompt, str) else self.builder.decode(prompt)

    @property
    def usage(self) -> Usage:
        """Tokens so far; it grows while deltas are read."""
        return self._record.usage


class Gateway:
    """Ties the leaves together."""

    def __init__(
        self,
        *,
        tenants: Tenants,
        router: Router,
        registry: SnapshotWatcher,
        admission: Admission,
        residency: Residency,
        usage: UsageLog,
        engine: Engine,
        builder: PromptBuilder,
        metrics: Metrics,
        places: Places,
        feedback: FeedbackDesk,
        shadows: Shadows,
        merged: MergedModels,
        default_limits: Limits,
        request_limits: RequestLimits,
        deadlines: Deadlines,
        grammars: Grammars,
        threads: FairThreads,
    ) -> None:
        self._tenants = tenants
        self._router = router
        self._registry = registry
        self._admission = admission
        self._residency = residency
        self._usage = usage
        self._engine = engine
        self._builder = builder
        self._metrics = metrics
        self._places = places
        self._feedback = feedback
        self._shadows = shadows
        self._merged = merged
        self._default_limits = default_limits
        self._request_limits = request_limits
        self._deadlines = deadlines
        self._grammars = grammars
        self._threads = threads
        self._await_first_version = Counter[str]()  # by tenant

    @contextmanager
    def arrive(self, caller: Caller) -> Iterator[Arrival]:
        """Lets a request in by what its headers say, and counts it until the context is left.

        A transport enters this before it reads a body or decodes a message, whatever the request
        is for, and leaves it when the last byte of the answer is out: what is not let in has cost
        nothing. Whatever goes wrong later, a bad body too, the request has been counted.

        Raises Unauthenticated, PermissionDenied, ModelNotFound, RateLimited or Draining.
        """
        tenant = self._tenants.authenticate(caller.api_key, caller.tenant)
        with ExitStack() as stack:
            arriving = self._admission.arrive(caller, tenant, self._limits(tenant))
            try:
                arrival = stack.enter_context(arriving)
            except (RateLimited, Draining) as error:
                self._metrics.refuse(caller.transport, describe(error).code)
                raise
            yield arrival

    @asynccontextmanager
    async def generate(self, request: Request, arrival: Arrival) -> AsyncIterator[Generation]:
        """Yields the answer once its first delta is there, so that an error still has a status.

        Raises what errors.py lists. Leaving the context ends the request, wherever it is.
        """
        caller = arrival.caller
        route = self._merged.reachable(await self._route(arrival.tenant, request.model))
        place = self._place(request, route, caller)
        if place is not None:
            route = place.route
        on_end = _nothing_more if place is None else place.end
        with (
            self._metrics.under_way(route),
            self._usage.record(caller.request_id, route, caller.transport, on_end) as record,
        ):
            async with self._deadlines.deadline(), AsyncExitStack() as stack:
                answer = self._answer(request, arrival, record, place)
                try:
                    generation = await stack.enter_async_context(answer)
                except AdapterUnavailable as error:
                    if place is None or not _is_down(error) or not place.fall_back(str(error)):
                        raise
                    record.route = place.route
                    answer = self._answer(request, arrival, record)
                    generation = await stack.enter_async_context(answer)
                heard = self._shadows.listen(place, request)
                if heard is not None:
                    generation.deltas = _heard_by(heard, generation.deltas)
                yield generation
        if heard is not None:
            self._shadows.offer(heard)

    async def feedback(self, said: Feedback, arrival: Arrival) -> bool:
        """Whether it is new. Raises what `FeedbackDesk.give` raises."""
        return await self._feedback.give(arrival.tenant, said)

    async def models(
        self, arrival: Arrival, view: Callable[[Sequence[ModelCard]], Viewed]
    ) -> Viewed:
        """What `view` makes of the models that the caller's tenant can use.

        The shape of such a list knows no parts: it grows with the tenant's adapters, and ten
        thousand take a quarter of a second. So a long one is made in the tenant's turn in the
        threads. Raises Overloaded where too many of its requests wait for that.
        """

        def make() -> Viewed:
            return view(self._router.models(arrival.tenant))

        is_long = self._router.has_many_models(arrival.tenant)
        return await self._threads.do(arrival.tenant, is_long, make)

    def get_model(self, model: str, arrival: Arrival) -> ModelCard:
        return self._router.get_model(arrival.tenant, model)

    def _place(self, request: Request, route: Route, caller: Caller) -> Place | None:
        """The request's place in a rollout or an experiment, if its adapter has one."""
        station = self._places.station(route.tenant, request.model)
        if station is None:
            return None
        key = hash_key(caller.api_key or "")
        unit = unit_of(request.options.user, caller.conversation, key)
        place = self._places.place(station, route, unit)
        if place is not None and self._merged.reachable(place.route) is not place.route:
            place.fall_back(f"{place.route.answers} cannot answer now")
            place.answer_by(self._merged.reachable(place.route))
        return place

    async def _route(self, tenant: str, model: str) -> Route:
        """Waits for an adapter's first version, which was promoted a moment ago, to be loaded.

        Who waits here is in no queue yet, so only a few of a tenant do; others come again.
        """
        try:
            return self._router.route(tenant, model)
        except AliasNotServing:
            waiting = self._await_first_version
            if waiting[tenant] >= _MOST_AWAIT_FIRST_VERSION:
                raise
        waiting[tenant] += 1
        try:
            return await self._first_route(tenant, model)
        finally:
            waiting[tenant] -= 1
            if not waiting[tenant]:
                del waiting[tenant]

    async def _first_route(self, tenant: str, model: str) -> Route:
        deadline = time.monotonic() + _FIRST_VERSION_SECONDS
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            try:
                return self._router.route(tenant, model)
            except AliasNotServing:
                if time.monotonic() > deadline:
                    raise

    @asynccontextmanager
    async def _answer(
        self, request: Request, arrival: Arrival, record: Record, place: Place | None = None
    ) -> AsyncIterator[Generation]:
        """By the record's route. A `place` is that of a request that has not been counted yet."""
        route = record.route
        await self._threads.do(
            arrival.tenant, is_large(request), validate, request, self._request_limits
        )
        if route.mode == "unmerged" and not self._engine.is_alive:
            raise EngineDead(
                "The engine is down; try again shortly.",
                retry_after_seconds=self._engine.retry_after_seconds,
            )
        if place is not None:
            place.admit(record.request_id)
        prepared = await self._builder.prepare(
            request, contract_of(self._registry.current, route.version), arrival.tenant
        )
        prepared = _fit_to_budget(prepared, request, arrival.limits)
        record.prompt_tokens = prepared.prompt_tokens
        prepared = await self._with_tools(request, prepared, route)
        # Before the request holds anything that others wait for.
        await self._grammars.check(prepared.sampling.structured, arrival.tenant)
        # An answer whose length nobody has stated ends where the context of what answers ends.
        shortest = max(map(len, prepared.prompt_ids)) + (request.sampling.max_tokens or 1)
        if not self._merged.has_room(route, shortest):
            route = record.route = route.unmerged()
            if place is not None:
                place.answer_by(route)
        async with self._admission.admit(
            arrival, route, prepared.most_tokens, prepared.prompt_tokens
        ) as ticket:
            started = _Started()
            try:
                async with AsyncExitStack() as held:
                    begin = partial(self._begin, held, request, prepared, record, ticket, started)
                    try:
                        deltas = await begin()
                    except EngineDead:
                        if record.route.mode == "unmerged":
                            raise
                        record.route = record.route.unmerged()
                        if place is not None:
                            place.answer_by(record.route)
                        await held.aclose()  # before another engine's turn is waited for
                        await ticket.take_turn(record.route)
                        deltas = await begin()
                    yield Generation(request, record, prepared.prompt_ids, deltas, self._builder)
            finally:
                ticket.settle(started.prompt_tokens + record.completion_tokens)

    async def _with_tools(self, request: Request, prepared: Prepared, route: Route) -> Prepared:
        """Bound to the request's tools. Raises InvalidRequest where they cannot be used."""
        if not (isinstance(request, ChatRequest) and request.tools and _calls_tools(request)):
            return prepared
        try:
            with self._merged.lend(route) as engine:
                tools = await self._bind_tools(engine, request, prepared, route)
        except EngineDead:
            if route.mode == "unmerged":
                raise
            tools = await self._bind_tools(self._engine, request, prepared, route)
        return replace(prepared, sampling=tools.bind(prepared.sampling), tools=tools)

    async def _bind_tools(
        self, engine: Engine, request: ChatRequest, prepared: Prepared, route: Route
    ) -> ToolSession:
        return await self._threads.do(
            route.tenant, is_large(request), engine.tools, request, prepared.prompt_ids[0]
        )

    async def _begin(
        self,
        held: AsyncExitStack,
        request: Request,
        prepared: Prepared,
        record: Record,
        ticket: Ticket,
        started: "_Started",
    ) -> AsyncIterator[Delta]:
        """Deltas by the record's route, of which the first has come; `held` gets what they need."""
        engine = held.enter_context(self._merged.lend(record.route))
        adapter = await held.enter_async_context(self._residency.lease(record.route))
        deltas = self._run(engine, request, prepared, adapter, record, ticket, started)
        counted = record.count(deltas, ticket.charge)
        answers = await held.enter_async_context(aclosing(counted))
        return prepend(await anext(answers), answers)

    def _run(
        self,
        engine: Engine,
        request: Request,
        prepared: Prepared,
        adapter: LoadedAdapter | None,
        record: Record,
        ticket: Ticket,
        started: "_Started",
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
                ticket,
                started,
            )
            for i, ids in enumerate(prepared.prompt_ids)
            for j, one_of_them in enumerate(_one_by_one(sampling))
        ]
        merged = merge(streams)
        tools = prepared.tools
        return merged if tools is None else _split_tool_calls(merged, tools)

    def _limits(self, tenant: str) -> Limits:
        own, default = self._registry.current.limits(tenant), self._default_limits
        return Limits(
            _first(own.requests_per_minute, default.requests_per_minute),
            _first(own.tokens_per_minute, default.tokens_per_minute),
            _first(own.max_concurrent, default.max_concurrent),
        )


async def _heard_by(heard: Heard, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    async for delta in deltas:
        heard.add(delta)
        yield delta


def _nothing_more(record: Record) -> None:
    """Of a request of no trial, all is known."""


def _is_down(error: AdapterUnavailable) -> bool:
    """Whether the version itself is at fault, not a server with too much to do."""
    return error.code != "no_adapter_slot"


def _first(own: int | None, default: int | None) -> int | None:
    return default if own is None else own


def _calls_tools(request: ChatRequest) -> bool:
    return request.tool_choice is None or request.tool_choice.kind != "none"


def _fit_to_budget(prepared: Prepared, request: Request, limits: Limits) -> Prepared:
    """Shortens an answer of no stated length to what the tenant's token budget can ever allow."""
    budget = limits.tokens_per_minute
    if not budget or request.sampling.max_tokens is not None:
        return prepared
    answers = len(prepared.prompt_ids) * prepared.sampling.n
    most = max(1, (budget - prepared.prompt_tokens) // answers)
    max_tokens = min(prepared.sampling.max_tokens or most, most)
    sampling = replace(
        prepared.sampling,
        max_tokens=max_tokens,
        min_tokens=min(prepared.sampling.min_tokens, max_tokens),
    )
    return Prepared(prepared.prompt_ids, sampling)


@dataclass(slots=True)
class _Started:
    """What of a request the engine has been given: it is used, whether or not anybody reads on."""

    prompt_tokens: int = 0


def _one_by_one(sampling: SamplingParams) -> Sequence[SamplingParams]:
    """A request's choices, each to be computed by itself, so that each takes a place of its own.

    Seeds follow each other, as the engine's own would. Greedy choices are all the same; the engine
    computes them once.
    """
    if sampling.n == 1 or sampling.temperature == 0:
        return (sampling,)
    seed = sampling.seed
    return [
        replace(sampling, n=1, seed=None if seed is None else seed + j) for j in range(sampling.n)
    ]


async def _sequence(
    engine: Engine,
    request: EngineRequest,
    index: int,
    prompt_tokens: int,
    ticket: Ticket,
    started: _Started,
) -> AsyncGenerator[Delta, None]:
    """Waits for its place, runs in it, and gives it back. `index` is its first choice's among those
    of the request; `prompt_tokens` are 0 for further choices of one prompt, which is counted once.
    """
    async with ticket.place() as rank:
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
