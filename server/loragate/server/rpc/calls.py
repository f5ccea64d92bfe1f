"""One gRPC call from outside, for every method alike: who calls, how its message is read, and what
a failure looks like.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf import any_pb2, descriptor_pool, duration_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from loragate.server.admin.administration import check_admin_key
from loragate.server.admission.admission import Arrival
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import Caller, Route
from loragate.server.errors import ClientTooSlow, InvalidRequest
from loragate.server.gateway.arrivals import Arrivals
from loragate.server.gateway.bounds import SMALL_MESSAGE
from loragate.server.rpc.field_count import check_fields
from loragate.server.wire import headers
from loragate.server.wire.statuses import Failure, describe

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic for type checkers alone

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
Metadata = Sequence[tuple[str, str | bytes]]
Context = grpc.aio.ServicerContext[object, object]
Method = Callable[[object, Context], Awaitable[object]]
Guard = Callable[[Context], AbstractAsyncContextManager[str]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_DETAILS_BYTES = 1024  # clients refuse answers whose headers pass 8 KiB; three bytes for one


@asynccontextmanager
async def answering(
    context: grpc.aio.ServicerContext[Asked, Answered], *, is_for_operator: bool = False
) -> AsyncIterator[Caller]:
    """Wraps the whole of a method: yields who calls, and turns what is raised into a status.

    `is_for_operator`: the method lets in who has the admin key before it does anything that fails
    with what is for operators alone. Cancellation passes through: gRPC has told the client
    already, or there is none any more.
    """
    sent = _values(tuple(context.invocation_metadata() or ()))
    request_id = _request_id(sent)
    context.set_trailing_metadata(((headers.REQUEST_ID, request_id),))
    try:
        yield _caller(sent, request_id)
    except grpc.aio.BaseError:
        raise  # gRPC's own, such as a write to a client that has just gone
    except DecodeError as error:
        await _abort(context, describe(InvalidRequest(f"The request is no message: {error}")))
    except Exception as error:  # the one place where an unknown error gets its status
        failure = describe(error, is_for_operator=is_for_operator)
        if failure.says_less:
            logger.warning("a call failed: %s", error, extra={"request_id": request_id})
        if failure.status.grpc_code is grpc.StatusCode.INTERNAL:
            logger.exception("gRPC call failed", extra={"request_id": request_id})
        await _abort(context, failure)


class AdminCalls:
    """What all methods share that are for whoever holds the admin key."""

    def __init__(self, admin_key: str, is_tenant_key: Callable[[str], bool]) -> None:
        self._admin_key = admin_key
        self._is_tenant_key = is_tenant_key

    @asynccontextmanager
    async def answering(
        self, context: grpc.aio.ServicerContext[Asked, Answered]
    ) -> AsyncIterator[str]:
        """As `answering`, and turns everybody else away. Yields for which tenant to read: none."""
        async with answering(context, is_for_operator=True) as caller:
            check_admin_key(caller.api_key, self._admin_key, self._is_tenant_key)
            yield ""


class InferenceCalls:
    """What all methods share that are for tenants: who calls, from before the message is decoded
    until the call is over.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._arrived: dict[object, Arrival] = {}  # by the call's context

    @asynccontextmanager
    async def answering(
        self, context: grpc.aio.ServicerContext[Asked, Answered]
    ) -> AsyncIterator[str]:
        """As `answering`, and lets in only whom the gateway does. Yields the tenant for whom
        to read. For the interceptor alone.
        """
        async with answering(context) as caller:
            with self._arrivals.arrive(caller) as arrival:
                self._arrived[context] = arrival
                try:
                    yield arrival.tenant
                finally:
                    del self._arrived[context]

    def arrival(self, context: grpc.aio.ServicerContext[Asked, Answered]) -> Arrival:
        """What a method gives the gateway."""
        return self._arrived[context]


class GuardingInterceptor(grpc.aio.ServerInterceptor):
    """Stands before a service's methods: a message is read once its caller is let in, in so many
    seconds, and decoded once its fields are counted.

    To gRPC, methods that take one message take a stream, of which the first is read: only so can
    something be asked before it has come. Bytes that are no message are the client's mistake; gRPC
    would call it the server's. The whole call runs inside its service's guard, which turns what is
    raised into a status. A method that takes a stream asks by itself before its first message. None
    may be a generator.
    """

    def __init__(
        self, guards: Mapping[str, Guard], threads: FairThreads, message_seconds: float
    ) -> None:
        """`guards` are by the full name of the service; what has none is left alone."""
        self._guards = dict(guards)
        self._threads = threads
        self._message_seconds = message_seconds

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        service, _, name = handler_call_details.method.removeprefix("/").rpartition("/")
        guard = self._guards.get(service)
        if handler is None or handler.request_streaming or guard is None:
            return handler
        streams = handler.response_streaming
        # The library's types know methods of the sync server only.
        method = cast(Method, handler.unary_stream if streams else handler.unary_unary)
        kind = descriptor_pool.Default().FindMethodByName(f"{service}.{name}").input_type
        decode = partial(_decode, cast(Callable[[bytes], object], handler.request_deserializer))
        wrap = (
            grpc.stream_stream_rpc_method_handler
            if streams
            else grpc.stream_unary_rpc_method_handler
        )
        return wrap(
            self._guarded(guard, method, partial(decode, kind)), None, handler.response_serializer
        )

    def _guarded(
        self, guard: Guard, method: Method, decode: Callable[[bytes], object]
    ) -> Callable[[object, Context], Awaitable[object]]:
        async def guarded(_: object, context: Context) -> object:
            async with guard(context) as tenant:
                message = await self._message(context)
                is_large = len(message) > SMALL_MESSAGE
                request = await self._threads.do(tenant, is_large, decode, message)
                del message
                return await method(request, context)

        return guarded

    async def _message(self, context: Context) -> bytes:
        """Raises ClientTooSlow, and InvalidRequest where the client sends none."""
        timeout = asyncio.timeout(self._message_seconds)
        try:
            async with timeout:
                message = await context.read()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise ClientTooSlow(
                f"The request did not come within {self._message_seconds:g} s; send it faster, or "
                "raise server.body_timeout_seconds."
            ) from None
        if not isinstance(message, bytes):
            raise InvalidRequest("The call has no message; send one.")
        return message


def _decode(decode: Callable[[bytes], object], kind: Descriptor, message: bytes) -> object:
    """Raises InvalidRequest where there are more fields than a message may have."""
    if len(message) > SMALL_MESSAGE:
        check_fields(message, kind)
    return decode(message)


async def announce(
    context: grpc.aio.ServicerContext[Asked, Answered], caller: Caller, route: Route
) -> None:
    """Says at once, and again at the end, which weights answer."""
    provenance = ((headers.REQUEST_ID, caller.request_id), *headers.provenance_of(route))
    context.set_trailing_metadata(provenance)
    await context.send_initial_metadata(provenance)


def _request_id(sent: Mapping[str, Sequence[str]]) -> str:
    request_id = _first(sent, headers.REQUEST_ID) or ""
    return request_id if _REQUEST_ID.fullmatch(request_id) else f"req-{uuid.uuid4().hex}"


def _caller(sent: Mapping[str, Sequence[str]], request_id: str) -> Caller:
    """Raises Unauthenticated where two keys were sent that differ."""
    return Caller(
        api_key=headers.one_key((name, sent.get(name, ())) for name in headers.KEY_HEADERS),
        request_id=request_id,
        transport="grpc",
        tenant=_first(sent, headers.TENANT),
        conversation=_first(sent, headers.CONVERSATION),
    )


def _values(metadata: Metadata) -> Mapping[str, Sequence[str]]:
    values: dict[str, list[str]] = {}
    for name, value in metadata:
        if isinstance(value, str):
            values.setdefault(name, []).append(value)
    return values


def _first(sent: Mapping[str, Sequence[str]], name: str) -> str | None:
    return next(iter(sent.get(name, ())), None)


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
