"""One gRPC call from outside: who calls, and what a failure looks like, for every method alike."""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from loragate.server.admin.administration import check_admin_key
from loragate.server.admission import Arrival
from loragate.server.core import Caller, Route
from loragate.server.errors import Failure, InvalidRequest, describe
from loragate.server.gateway import Gateway

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic for type checkers alone

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Metadata = Sequence[tuple[str, str | bytes]]
Context = grpc.aio.ServicerContext[object, object]
Method = Callable[[object, Context], Awaitable[object]]
Guard = Callable[[Context], AbstractAsyncContextManager[None]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_DETAILS_BYTES = 1024  # clients refuse answers whose headers pass 8 KiB; three bytes for one


@asynccontextmanager
async def answering(
    context: grpc.aio.ServicerContext[Asked, Answered],
) -> AsyncIterator[Caller]:
    """Wraps the whole of a method: yields who calls, and turns what is raised into a status.

    Cancellation passes through: gRPC has told the client already, or there is none any more.
    """
    caller = caller_of(context)
    context.set_trailing_metadata((("x-request-id", caller.request_id),))
    try:
        yield caller
    except grpc.aio.BaseError:
        raise  # gRPC's own, such as a write to a client that has just gone
    except DecodeError as error:
        await _abort(context, describe(InvalidRequest(f"The request is no message: {error}")))
    except Exception as error:  # the one place where an unknown error gets its status
        failure = describe(error)
        if failure.status.grpc_code is grpc.StatusCode.INTERNAL:
            logger.exception("gRPC call failed", extra={"request_id": caller.request_id})
        await _abort(context, failure)


class AdminCalls:
    """What all methods share that are for whoever holds the admin key."""

    def __init__(self, admin_key: str, is_tenant_key: Callable[[str], bool]) -> None:
        self._admin_key = admin_key
        self._is_tenant_key = is_tenant_key

    @asynccontextmanager
    async def answering(
        self, context: grpc.aio.ServicerContext[Asked, Answered]
    ) -> AsyncIterator[None]:
        """As `answering`, and turns everybody else away."""
        async with answering(context) as caller:
            check_admin_key(caller.api_key, self._admin_key, self._is_tenant_key)
            yield


class InferenceCalls:
    """What all methods share that are for tenants: who calls, from before the message is decoded
    until the call is over.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._arrivals: dict[object, Arrival] = {}  # by the call's context

    @asynccontextmanager
    async def answering(
        self, context: grpc.aio.ServicerContext[Asked, Answered]
    ) -> AsyncIterator[None]:
        """As `answering`, and lets in only whom the gateway does. For the interceptor alone."""
        async with answering(context) as caller:
            with self._gateway.arrive(caller) as arrival:
                self._arrivals[context] = arrival
                try:
                    yield
                finally:
                    del self._arrivals[context]

    def arrival(self, context: grpc.aio.ServicerContext[Asked, Answered]) -> Arrival:
        """What a method gives the gateway."""
        return self._arrivals[context]


class GuardingInterceptor(grpc.aio.ServerInterceptor):
    """Stands before a service's methods: a message is decoded once its caller is let in.

    Bytes that are no message are the client's mistake; gRPC would call it the server's. Of a method
    that takes one message, the whole call runs inside its service's guard, which turns what is
    raised into a status: whatever bounds a message before it is decoded belongs in `_guarded`. A
    method that takes a stream asks by itself before its first message. None may be a generator.
    """

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        """`guards` are by the full name of the service; what has none is left alone."""
        self._guards = dict(guards)

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0].removeprefix("/")
        guard = self._guards.get(service)
        if handler is None or handler.request_streaming or guard is None:
            return handler
        streams = handler.response_streaming
        # The library's types know methods of the sync server only.
        method = cast(Method, handler.unary_stream if streams else handler.unary_unary)
        decode = cast(Callable[[bytes], object], handler.request_deserializer)
        wrap = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        return wrap(_guarded(guard, method, decode), None, handler.response_serializer)


async def announce(
    context: grpc.aio.ServicerContext[Asked, Answered], caller: Caller, route: Route
) -> None:
    """Says at once, and again at the end, which weights answer."""
    provenance = (("x-request-id", caller.request_id), *route.provenance)
    context.set_trailing_metadata(provenance)
    await context.send_initial_metadata(provenance)


def _guarded(
    guard: Guard, method: Method, decode: Callable[[bytes], object]
) -> Callable[[bytes, Context], Awaitable[object]]:
    async def guarded(message: bytes, context: Context) -> object:
        async with guard(context):
            return await method(decode(message), context)

    return guarded


def caller_of(context: grpc.aio.ServicerContext[Asked, Answered]) -> Caller:
    sent = _first_values(tuple(context.invocation_metadata() or ()))
    request_id = sent.get("x-request-id", "")
    return Caller(
        api_key=_bearer(sent.get("authorization", "")) or sent.get("x-api-key"),
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else f"req-{uuid.uuid4().hex}",
        transport="grpc",
        tenant=sent.get("x-loragate-tenant"),
        conversation=sent.get("x-conversation-id"),
    )


def _first_values(metadata: Metadata) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for name, value in metadata:
        if isinstance(value, str):
            values.setdefault(name, value)
    return values


def _bearer(authorization: str) -> str | None:
    scheme, _, key = authorization.partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


async def _abort(context: grpc.aio.ServicerContext[Asked, Answered], failure: Failure) -> None:
    code, details = failure.status.grpc_code, _shortened(failure.message)
    trailers = [*(context.trailing_metadata() or ()), ("x-error-code", failure.code)]
    if failure.param and failure.param.isascii() and failure.param.isprintable():
        trailers.append(("x-error-param", failure.param))
    if failure.retry_after_seconds is not None:
        trailers.append(("retry-after-ms", str(round(failure.retry_after_seconds * 1000))))
        trailers.extend(_retry_info(code, details, failure.retry_after_seconds))
    await context.abort(code, details, tuple(trailers))


def _retry_info(code: grpc.StatusCode, details: str, seconds: float) -> Metadata:
    """What gRPC's own retry libraries read: a google.rpc.Status with a RetryInfo."""
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=details, details=[detail])
    return rpc_status.to_status(status).trailing_metadata


def _shortened(message: str) -> str:
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= _MAX_DETAILS_BYTES:
        return encoded.decode()
    return encoded[:_MAX_DETAILS_BYTES].decode("utf-8", "ignore") + "…"
