"""OpenAI-shaped HTTP over FastAPI: bodies in, the gateway's answer out, errors in OpenAI's object.

Middleware is pure ASGI: Starlette's BaseHTTPMiddleware would keep a client's disconnect from the
handler. A response starts only after the first delta is there, so that every failure before it has
a status of its own.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_swagger import patch_fastapi
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loragate.adapters.errors import LoragateError
from loragate.server import core
from loragate.server.admission import retry_after_header, retry_after_ms_header
from loragate.server.errors import (
    BodyTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    PermissionDenied,
    RequestError,
    RouteNotFound,
    Unauthenticated,
    describe,
)
from loragate.server.gateway import Caller, Gateway, Generation
from loragate.server.health import Health
from loragate.server.json_bodies import StrictJsonRoute
from loragate.server.metrics import Metrics
from loragate.server.openai_answers import DONE, Writer
from loragate.server.openai_requests import ChatBody, CompletionBody
from loragate.server.routing import ModelCard

logger = logging.getLogger(__name__)
access_log = logging.getLogger("loragate.access")
_NO_STATUS = 499  # what the access log shows where the client left before any status was sent
# Adapters are larger than any request; this route reads them by hand, after it has seen the key.
_UPLOAD = re.compile(r"/admin/v1/tenants/[^/]+/adapters/[^/]+/versions")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Bounds of the transport."""

    max_body_bytes: int
    metrics_key: Callable[[str], bool] | None = None


def build_http(
    gateway: Gateway,
    health: Health,
    metrics: Metrics,
    options: HttpOptions,
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
    )
    # FastAPI's own page loads its scripts from a public network, which a gateway may not reach.
    patch_fastapi(app, "/docs", swagger_ui_parameters={"persistAuthorization": False})
    data_plane = _data_plane(gateway)
    app.include_router(data_plane, prefix="/v1", tags=["models"])
    app.include_router(data_plane, prefix="/t/{tenant}/v1", tags=["models of one tenant"])
    app.include_router(_probes(health, metrics, options), tags=["operation"])
    for router in routers:
        app.include_router(router)
    for kind in (LoragateError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    # Inside Starlette's own last resort, outside all else; what is added last is outermost.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    app.add_middleware(Envelope)
    return app


def _data_plane(gateway: Gateway) -> APIRouter:
    async def authenticate(request: Request) -> None:
        gateway.authenticate(_caller(request))  # before the body's fields are looked at

    guards = [Depends(HTTPBearer(auto_error=False)), Depends(authenticate)]
    router = APIRouter(dependencies=guards, route_class=StrictJsonRoute)

    @router.post("/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return Answer(gateway, body.to_core(), _caller(request))

    @router.post("/completions", summary="Continue a text")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return Answer(gateway, body.to_core(), _caller(request))

    @router.get("/models", summary="List the models this key can use")
    async def list_models(request: Request) -> Response:
        cards = [_card(card) for card in gateway.models(_caller(request))]
        return _json(200, {"object": "list", "data": cards})

    @router.get("/models/{model:path}", summary="Get one model")
    async def get_model(model: str, request: Request) -> Response:
        return _json(200, _card(gateway.get_model(model, _caller(request))))

    return router


def _probes(health: Health, metrics: Metrics, options: HttpOptions) -> APIRouter:
    router = APIRouter()

    @router.get("/livez", summary="Is the process alive?")
    async def livez() -> Response:
        return _json(200 if health.is_live else 503, {"status": health.state})

    @router.get("/readyz", summary="Does it take requests?")
    async def readyz() -> Response:
        return _json(200 if health.is_ready else 503, {"status": health.state})

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def prometheus(request: Request) -> Response:
        if options.metrics_key is not None:
            key = _api_key(request)
            if key is None:
                raise Unauthenticated("/metrics needs the admin key here.")
            if not options.metrics_key(key):
                raise PermissionDenied("/metrics needs the admin key here.")
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


class Answer(Response):
    """Runs one request through the gateway while the response lasts, and no longer.

    A client that leaves cancels it, streaming or not, running or still queued.
    """

    def __init__(self, gateway: Gateway, request: core.Request, caller: Caller) -> None:
        super().__init__()
        self._gateway = gateway
        self._request = request
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _unless_disconnected(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        has_started = False
        try:
            async with self._gateway.generate(self._request, self._caller) as generation:
                writer = Writer(generation)
                if self._request.options.stream:
                    await _start(send, generation, b"text/event-stream; charset=utf-8")
                    has_started = True
                    async for event in writer.events():
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                    body = b""
                else:
                    body = await writer.whole()
            # The request is over; however slowly the client reads, it holds no place any more.
            if not has_started:
                await _start(send, generation, b"application/json", len(body))
                has_started = True
            await send({"type": "http.response.body", "body": body})
        except Exception as error:
            if not has_started:
                raise
            # The status has gone out already: what is left is an event that clients raise on.
            event = b"data: " + _error_body(error, self._caller.request_id) + b"\n\n" + DONE
            await send({"type": "http.response.body", "body": event})


async def _unless_disconnected(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Runs `work` until it ends or the client leaves, which cancels it."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # raises what it raised
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(
    send: Send, generation: Generation, content_type: bytes, length: int | None = None
) -> None:
    headers = [
        (b"content-type", content_type),
        (b"x-loragate-adapter", generation.route.adapter.encode()),
        (b"x-loragate-digest", generation.route.digest.encode()),
    ]
    if length is None:
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    else:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


class Envelope:
    """Gives each request an id, returns it in `x-request-id`, and writes the access log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = asyncio.get_running_loop().time()
        status = _NO_STATUS

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # Starlette's own last resort would answer and raise on, and the server then drop the
            # connection under the client's next request.
            if status != _NO_STATUS:
                raise
            await _send_error(error, scope, receive, send_with_id)
        finally:
            access_log.info(
                "%s %s %d",
                scope["method"],
                scope["path"],
                status,
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration_seconds": asyncio.get_running_loop().time() - started,
                },
            )


class BodyLimit:
    """Refuses bodies over the limit, by their stated length or while they come.

    Uploads of adapters have a limit of their own, which their route enforces.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _UPLOAD.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        stated = Headers(scope=scope).get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._max_bytes:
            await _send_error(self._too_large(), scope, receive, send)
            return
        await self._app(scope, receive_counted, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_bytes} bytes; shorten the request, or raise "
            "server.max_body_bytes."
        )


def _caller(request: Request) -> Caller:
    tenant: str | None = request.path_params.get("tenant")
    return Caller(_api_key(request), request.state.request_id, "http", tenant)


def _api_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _card(card: ModelCard) -> MutableMapping[str, object]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "parent": card.parent,
        "adapter": card.adapter,
        "digest": card.digest or None,
    }


async def _answer_error(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    failure = describe(_meant(error))
    # 405 comes with `Allow`.
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if failure.status.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if failure.retry_after_seconds is not None:
        headers["retry-after"] = str(retry_after_header(failure.retry_after_seconds))
        headers["retry-after-ms"] = str(retry_after_ms_header(failure.retry_after_seconds))
    elif failure.status.http_status in (409, 429):
        headers["x-should-retry"] = "false"
    return Response(
        _error_body(_meant(error), request_id),
        failure.status.http_status,
        headers,
        media_type="application/json",
    )


async def _send_error(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    await (await _answer_error(Request(scope), error))(scope, receive, send)


def _error_body(error: Exception, request_id: str) -> bytes:
    """OpenAI's error object; an exception that nobody foresaw is logged here, and says nothing."""
    failure = describe(error)
    if failure.status.http_status == 500:
        logger.error("unforeseen failure", exc_info=error, extra={"request_id": request_id})
    return msgspec.json.encode(
        {
            "error": {
                "message": failure.message,
                "type": failure.status.type,
                "param": failure.param,
                "code": failure.code,
            }
        }
    )


def _meant(error: Exception) -> Exception:
    """Frameworks wrap what went wrong in exceptions of their own; returns ours."""
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors()[0])
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, RequestError):
            return error.__cause__
        if error.status_code == 405:
            return MethodNotAllowed("This path does not take this method.")
        if error.status_code == 404:
            return RouteNotFound("There is no such path; see /docs for those there are.")
        return InvalidRequest(str(error.detail))
    return error


# What pydantic puts into an error's location besides the field's own path: union members' names.
_TYPE_TAG = re.compile(r"str|int|list\[.*|constrained-.*|function-.*|literal\[.*|.*Body|.*Part")


def _invalid(problem: MutableMapping[str, object]) -> InvalidRequest:
    location = problem["loc"]
    parts: tuple[int | str, ...] = location[1:] if isinstance(location, tuple) else ()
    path = ""
    for position, part in enumerate(parts, start=1):
        names_field = position == len(parts) and problem["type"] == "extra_forbidden"
        if isinstance(part, int):
            path += f"[{part}]"
        elif names_field or not _TYPE_TAG.fullmatch(part):
            path += f".{part}" if path else part
    match problem["type"]:
        case "json_invalid":
            reason = problem.get("ctx", {})
            why = f": {reason['error']}" if isinstance(reason, dict) and "error" in reason else ""
            return InvalidRequest(f"The body is not valid JSON{why}.", code="invalid_json")
        case "missing" if path:
            return InvalidRequest(
                f"{path} is missing.", param=path, code="missing_required_parameter"
            )
        case "missing":
            return InvalidRequest(
                "The body is empty; send a JSON object.", code="missing_required_parameter"
            )
        case "extra_forbidden":
            return InvalidRequest(
                f"{path} is no parameter of this call; check its spelling.",
                param=path,
                code="unknown_parameter",
            )
        case _:
            return InvalidRequest(
                f"{path or 'The body'}: {problem['msg']}.", param=path or None, code="invalid_type"
            )


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
