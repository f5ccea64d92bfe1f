"""OpenAI-shaped HTTP over FastAPI: bodies in, the gateway's answer out, errors in OpenAI's object.

Middleware is pure ASGI: Starlette's BaseHTTPMiddleware would keep a client's disconnect from the
handler. A response starts only after the first delta is there, so that every failure before it has
a status of its own.
"""

from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_swagger import patch_fastapi
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from loragate.adapters.errors import LoragateError
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import BASE, Caller, ChatRequest, CompletionRequest
from loragate.server.errors import InvalidRequest, PermissionDenied, RouteNotFound, Unauthenticated
from loragate.server.gateway.bounds import MOST_NAME_CHARACTERS
from loragate.server.gateway.routing import ModelCard
from loragate.server.gateway.services import TenantServices
from loragate.server.http.failures import answer_error
from loragate.server.http.feedback import FeedbackBody
from loragate.server.http.generation import GenerationResponse
from loragate.server.http.guarded_routes import arrival_of, guarded_by, sent_key
from loragate.server.http.middleware import (
    BodyLimit,
    Envelope,
    HeadLimit,
    PlainForm,
    open_to_pages,
)
from loragate.server.http.requests import Body, ChatBody, CompletionBody, Messages, TokenIds
from loragate.server.http.responses_routes import add_responses
from loragate.server.telemetry.health import Health
from loragate.server.telemetry.metrics import Metrics
from loragate.server.wire.headers import CONVERSATION


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Bounds of the transport."""

    max_body_bytes: int
    body_seconds: float
    metrics_key: Callable[[str], bool] | None = None
    cors_origins: Sequence[str] = ()


class TokenizeBody(ChatBody):
    """Any chat request, or a `prompt`; `model` may be left out."""

    model: str = Field(default=BASE, max_length=MOST_NAME_CHARACTERS)
    messages: Messages = Field(default=[])
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False

    def to_request(self) -> ChatRequest | CompletionRequest:
        """Raises InvalidRequest."""
        if self.prompt is None:
            return self.to_core()
        if self.messages:
            raise InvalidRequest("Send either prompt or messages.", param="prompt")
        has_special = self.add_special_tokens is not False
        return CompletionRequest(self.model, (self.prompt,), add_special_tokens=has_special)


class DetokenizeBody(Body):
    model: str = Field(default=BASE, max_length=MOST_NAME_CHARACTERS)
    tokens: TokenIds


def build_http(
    services: TenantServices,
    health: Health,
    metrics: Metrics,
    options: HttpOptions,
    threads: FairThreads,
    routers: Sequence[APIRouter] = (),
) -> ASGIApp:
    """Returns the ASGI application; `routers` are mounted beside the data plane."""
    app = FastAPI(
        title="loragate",
        summary="One base model in memory, many LoRA adapters on top, served per tenant.",
        description="The key says which tenant calls; `model` says which of its adapters answers.",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,  # clients lose their body, or their key, on the way
    )
    # FastAPI's own page loads its scripts from a public network, which a gateway may not reach.
    patch_fastapi(app, "/docs", swagger_ui_parameters={"persistAuthorization": False})
    data_plane, tokens = _data_plane(services, threads)
    app.include_router(data_plane, prefix="/v1", tags=["models"])
    app.include_router(data_plane, prefix="/t/{tenant}/v1", tags=["models of one tenant"])
    app.include_router(tokens, tags=["models"])
    app.include_router(tokens, prefix="/t/{tenant}", tags=["models of one tenant"])
    app.include_router(_probes(health, metrics, options), tags=["operation"])
    for router in routers:
        app.include_router(router)
    for kind in (LoragateError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    # Inside Starlette's own last resort, outside all else; what is added last is outermost.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes, seconds=options.body_seconds)
    app.add_middleware(PlainForm)
    app.add_middleware(HeadLimit)
    app.add_middleware(Envelope)
    return open_to_pages(app, options.cors_origins)


def _data_plane(services: TenantServices, threads: FairThreads) -> tuple[APIRouter, APIRouter]:
    """The routes below `/v1`, and those that vLLM has beside it."""

    @contextmanager
    def arriving(request: Request) -> Iterator[str]:
        with services.arrivals.arrive(_caller(request)) as arrival:
            request.state.arrival = arrival
            yield arrival.tenant

    async def answer(body: ChatBody | CompletionBody, request: Request) -> Response:
        arrival, is_large = arrival_of(request), request.state.is_large
        asked = await threads.do(arrival.tenant, is_large, body.to_core)
        return GenerationResponse(services.gateway, asked, arrival, threads)

    said_to_clients = [Depends(HTTPBearer(auto_error=False))]  # it checks nothing
    router, tokens = (
        APIRouter(dependencies=said_to_clients, route_class=guarded_by(arriving, threads))
        for _ in range(2)
    )

    @router.post("/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await answer(body, request)

    @router.post("/completions", summary="Continue a text")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await answer(body, request)

    add_responses(router, services.gateway, threads)

    @router.post("/embeddings", summary="Refused: the models here generate text")
    async def embeddings() -> Response:
        raise RouteNotFound(
            "The models here generate text and give no embeddings; run a model that was trained "
            "for embeddings on a server of its own, such as `vllm serve MODEL --runner pooling`, "
            "and send /v1/embeddings there."
        )

    @router.post("/feedback", summary="Say how good an answer was")
    async def feedback(body: FeedbackBody, request: Request) -> Response:
        is_new = await services.feedback.give(arrival_of(request).tenant, body.to_feedback())
        return _json(200, {"object": "feedback", "id": body.request_id, "is_new": is_new})

    @router.get("/models", summary="List the models this key can use")
    async def list_models(request: Request) -> Response:
        return await services.models.view(arrival_of(request), _list_of_models)

    @router.get("/models/{model:path}", summary="Get one model")
    async def get_model(model: str, request: Request) -> Response:
        return _json(200, _card(services.models.get(model, arrival_of(request))))

    @tokens.post("/tokenize", summary="The token ids of a prompt or of messages")
    async def tokenize(body: TokenizeBody, request: Request) -> Response:
        arrival, is_large = arrival_of(request), request.state.is_large
        asked = await threads.do(arrival.tenant, is_large, body.to_request)
        has_strings = bool(body.return_token_strs)
        found = await services.gateway.tokenize(asked, arrival, strings=has_strings)
        return await threads.do(arrival.tenant, is_large, _json, 200, found)

    @tokens.post("/detokenize", summary="The text of token ids")
    async def detokenize(body: DetokenizeBody, request: Request) -> Response:
        text = await services.gateway.detokenize(body.model, body.tokens, arrival_of(request))
        return _json(200, {"prompt": text})

    return router, tokens


def _list_of_models(cards: Sequence[ModelCard]) -> Response:
    return _json(200, {"object": "list", "data": [_card(card) for card in cards]})


def _probes(health: Health, metrics: Metrics, options: HttpOptions) -> APIRouter:
    router = APIRouter()

    @router.get("/health", summary="As /readyz: vLLM's name for it")
    @router.get("/ping", summary="As /readyz: SageMaker's name for it")
    @router.post("/ping", summary="As /readyz: SageMaker's name for it")
    async def health_of_vllm() -> Response:
        return await readyz()

    @router.get("/version", summary="The server's version")
    async def version() -> Response:
        return _json(200, {"version": metadata.version("loragate")})

    @router.get("/livez", summary="Is the process alive?")
    async def livez() -> Response:
        return _json(200 if health.is_live else 503, {"status": health.state})

    @router.get("/readyz", summary="Does it take requests?")
    async def readyz() -> Response:
        return _json(200 if health.is_ready else 503, {"status": health.state})

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def prometheus(request: Request) -> Response:
        if options.metrics_key is not None:
            key = sent_key(request)
            if key is None:
                raise Unauthenticated("/metrics needs the admin key here.")
            if not options.metrics_key(key):
                raise PermissionDenied("/metrics needs the admin key here.")
        return StreamingResponse(
            _each(await metrics.scrape()), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return router


async def _each(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _caller(request: Request) -> Caller:
    tenant: str | None = request.path_params.get("tenant")
    conversation = request.headers.get(CONVERSATION)
    return Caller(sent_key(request), request.state.request_id, "http", tenant, conversation)


def _card(card: ModelCard) -> MutableMapping[str, object]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "root": card.root,
        "parent": card.parent,
        "max_model_len": card.max_model_len,
        "adapter": card.adapter,
        "digest": card.digest or None,
    }


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
