"""Around every request, in pure ASGI: its id and access log, and limits of its head and body."""

import asyncio
import logging
import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loragate.server.errors import BodyTooLarge, ClientTooSlow, HeadersTooLarge, UrlTooLong
from loragate.server.http.failures import send_error
from loragate.server.wire.headers import REQUEST_ID

access_log = logging.getLogger("loragate.access")
_NO_STATUS = 499  # what the access log shows where the client left before any status was sent
# Adapters are larger than any request; this route reads them by hand, after it has seen the key.
_UPLOAD = re.compile(r"/admin/v1/tenants/[^/]+/adapters/[^/]+/versions")
_MOST_HEADERS = 100
_MOST_HEADER_BYTES = 32_768
_MOST_ADDRESS_BYTES = 8192
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def open_to_pages(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Lets pages of these origins call. Put it outside of all else: a browser shows its page no
    error that comes without these headers, and asks beforehand without a key.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["*"],
    )


class Envelope:
    """Gives each request an id, returns it in `x-request-id`, and writes the access log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = asyncio.get_running_loop().time()
        status = _NO_STATUS

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # Starlette's own last resort would answer and raise on, and the server then drop the
            # connection under the client's next request.
            if status != _NO_STATUS:
                raise
            await send_error(error, scope, receive, send_with_id)
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


class PlainForm:
    """Routes see a HEAD as the GET whose head it wants, and no slash at the path's end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path.endswith("/") and path.strip("/"):
            scope = {**scope, "path": path.rstrip("/"), "raw_path": scope["raw_path"].rstrip(b"/")}
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            await send({**message, "body": b""} if is_body else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


class HeadLimit:
    """Refuses addresses and headers that are longer, or more, than any client's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := _refused_head(scope)) is not None:
            await send_error(refusal, scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _refused_head(scope: Scope) -> UrlTooLong | HeadersTooLarge | None:
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    address = len(scope["raw_path"]) + len(scope["query_string"])
    if address > _MOST_ADDRESS_BYTES:
        return UrlTooLong(
            f"The path and its query have {address} bytes, and may have {_MOST_ADDRESS_BYTES}."
        )
    if len(headers) > _MOST_HEADERS:
        return HeadersTooLarge(
            f"The request has {len(headers)} headers, and may have {_MOST_HEADERS}."
        )
    size = sum(len(name) + len(value) for name, value in headers)
    if size > _MOST_HEADER_BYTES:
        return HeadersTooLarge(
            f"The request's headers have {size} bytes, and may have {_MOST_HEADER_BYTES}."
        )
    return None


class BodyLimit:
    """Refuses bodies over the limit, by their stated length or while they come, and those that do
    not come whole in their time.

    Uploads of adapters have a limit of their own, which their route enforces, and their time is for
    each piece.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "0")
        is_upload = _UPLOAD.fullmatch(scope["path"]) is not None
        if not is_upload and stated.isdecimal() and int(stated) > self._max_bytes:
            await send_error(self._too_large(), scope, receive, send)
            return
        body = _Body(receive, self._seconds, is_whole_timed=not is_upload)

        async def receive_counted() -> Message:
            message = await body.receive()
            if body.received > self._max_bytes and not is_upload:
                raise self._too_large()
            return message

        await self._app(scope, receive_counted, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_bytes} bytes; shorten the request, or raise "
            "server.max_body_bytes."
        )


class _Body:
    """A body as it comes, against the clock. What follows its end, a client's leaving, is not."""

    def __init__(self, receive: Receive, seconds: float, *, is_whole_timed: bool) -> None:
        self.received = 0
        self._receive = receive
        self._seconds = seconds
        self._is_whole_timed = is_whole_timed
        self._deadline: float | None = None
        self._has_ended = False

    async def receive(self) -> Message:
        """Raises ClientTooSlow."""
        if self._has_ended:
            return await self._receive()
        if self._deadline is None or not self._is_whole_timed:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        timeout = asyncio.timeout_at(self._deadline)
        try:
            async with timeout:
                message = await self._receive()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise ClientTooSlow(
                f"The body did not come within {self._seconds:g} s; send it faster, or raise "
                "server.body_timeout_seconds."
            ) from None
        self.received += len(message.get("body", b""))
        self._has_ended = not message.get("more_body", False)
        return message
