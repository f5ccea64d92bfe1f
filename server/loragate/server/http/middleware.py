"""Around every request, in pure ASGI: its id and access log, and the limit of its body."""

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loragate.server.errors import BodyTooLarge
from loragate.server.http.failures import send_error

access_log = logging.getLogger("loragate.access")
_NO_STATUS = 499  # what the access log shows where the client left before any status was sent
# Adapters are larger than any request; this route reads them by hand, after it has seen the key.
_UPLOAD = re.compile(r"/admin/v1/tenants/[^/]+/adapters/[^/]+/versions")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
            await send_error(self._too_large(), scope, receive, send)
            return
        await self._app(scope, receive_counted, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_bytes} bytes; shorten the request, or raise "
            "server.max_body_bytes."
        )
