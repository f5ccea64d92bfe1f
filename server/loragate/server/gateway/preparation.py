"""From what a client sent to what the engine gets, within the tenant's limits."""

from dataclasses import replace
from functools import partial

from loragate.adapters.registry.snapshot import Limits, SnapshotWatcher
from loragate.adapters.rendering.renderer import Renderer
from loragate.server.admission.admission import Arrival
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import ChatRequest, Request, Route
from loragate.server.engine.grammars.compiler import Grammars
from loragate.server.engine.protocol import Engine
from loragate.server.errors import EngineDead
from loragate.server.gateway.bounds import SMALL_PROMPT
from loragate.server.gateway.prompting import Prepared, PromptBuilder, contract_of
from loragate.server.gateway.request_size import is_large
from loragate.server.gateway.validation import RequestLimits, validate
from loragate.server.merged.models import MergedModels


class Preparation:
    """Checks a request, makes its token ids, and binds it to its tools and its grammar.

    What takes long runs in threads, in which tenants take turns; see `FairThreads`.
    """

    def __init__(
        self,
        builder: PromptBuilder,
        registry: SnapshotWatcher,
        request_limits: RequestLimits,
        grammars: Grammars,
        merged: MergedModels,
        engine: Engine,
        threads: FairThreads,
    ) -> None:
        """`engine` is the base model's; `threads` stay the caller's to close."""
        self._builder = builder
        self._registry = registry
        self._request_limits = request_limits
        self._grammars = grammars
        self._merged = merged
        self._engine = engine
        self.threads = threads

    @property
    def renderer(self) -> Renderer:
        return self._builder.renderer

    async def check(self, request: Request, arrival: Arrival) -> None:
        """Raises InvalidRequest where a value is out of its range."""
        await self.threads.do(
            arrival.tenant, is_large(request), validate, request, self._request_limits
        )

    async def token_ids(
        self, request: Request, arrival: Arrival, route: Route
    ) -> tuple[tuple[int, ...], ...]:
        """Of each prompt, as `prepare` makes them before it cuts or refuses any."""
        contract = contract_of(self._registry.current, route.version)
        return await self._builder.token_ids(request, contract, arrival.tenant)

    async def prepare(self, request: Request, arrival: Arrival, route: Route) -> Prepared:
        """Token ids and sampling. Raises InvalidRequest and ContextLengthExceeded."""
        contract = contract_of(self._registry.current, route.version)
        prepared = await self._builder.prepare(request, contract, arrival.tenant)
        return _fit_to_budget(prepared, request, arrival.limits)

    async def bind(
        self, prepared: Prepared, request: Request, arrival: Arrival, route: Route
    ) -> Prepared:
        """With the request's reasoning and tools, and with its grammar checked: all before it holds
        anything that others wait for. Raises InvalidRequest where they cannot be used.
        """
        if isinstance(request, ChatRequest) and _must_call(request):
            # A call is no answer in the format asked for, so the format has nothing to say.
            free = replace(prepared.sampling, structured=None)
            prepared = replace(prepared, sampling=free)
        prepared = await self._with_sessions(request, prepared, route)
        await self._grammars.check(prepared.sampling.structured, arrival.tenant)
        return prepared

    def fits(self, prepared: Prepared, request: Request, route: Route) -> bool:
        """Whether what answers by the route has a context long enough. An answer whose length
        nobody has stated ends where the context does.
        """
        shortest = max(map(len, prepared.prompt_ids)) + (request.sampling.max_tokens or 1)
        return self._merged.has_room(route, shortest)

    async def _with_sessions(self, request: Request, prepared: Prepared, route: Route) -> Prepared:
        if not isinstance(request, ChatRequest):
            return prepared
        try:
            with self._merged.acquire(route) as engine:
                return await self._bind(engine, request, prepared, route)
        except EngineDead:
            if route.mode == "unmerged":
                raise
            return await self._bind(self._engine, request, prepared, route)

    async def _bind(
        self, engine: Engine, request: ChatRequest, prepared: Prepared, route: Route
    ) -> Prepared:
        (ids,) = prepared.prompt_ids
        for_thread = len(ids) > SMALL_PROMPT or is_large(request)
        turn = partial(self.threads.do, route.tenant, for_thread)
        reasoning = await turn(engine.reasoning, prepared.template_kwargs, ids)
        if reasoning is not None:
            sampling = reasoning.bind(prepared.sampling)
            prepared = replace(prepared, sampling=sampling, reasoning=reasoning)
        if not (request.tools and _calls_tools(request)):
            return prepared
        tools = await turn(engine.tools, request, ids)
        return replace(prepared, sampling=tools.bind(prepared.sampling), tools=tools)


def _calls_tools(request: ChatRequest) -> bool:
    return request.tool_choice is None or request.tool_choice.kind != "none"


def _must_call(request: ChatRequest) -> bool:
    return request.tool_choice is not None and request.tool_choice.kind in ("required", "named")


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
    return replace(prepared, sampling=sampling)
