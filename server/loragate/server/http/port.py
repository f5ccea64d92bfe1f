"""HTTP's port, open from the first moment: while there is no engine yet, probes hear that the
server starts, and everybody else is asked to come again.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from loragate.server.config import ConfigError, ServerConfig, cors_origins, split_address
from loragate.server.errors import Starting
from loragate.server.http.connections import ConnectionBounds, bounded_connections
from loragate.server.http.failures import send_error
from loragate.server.http.middleware import Envelope, open_to_pages

_CUT_OFF_SECONDS = 1  # for what was cut off to tell its client
_COME_AGAIN_SECONDS = 5.0


class HttpPort:
    """A socket that listens, and the application that its requests go to."""

    def __init__(self, listener: socket.socket, config: ServerConfig) -> None:
        starting = Envelope(_answer_while_starting)
        self._app: ASGIApp = open_to_pages(starting, cors_origins(config))
        self._listener = listener
        self._running: asyncio.Task[None] | None = None
        self._web = _Uvicorn(
            uvicorn.Config(
                self._dispatch,
                interface="asgi3",
                http=bounded_connections(
                    ConnectionBounds(
                        config.head_timeout_seconds,
                        config.write_timeout_seconds,
                        config.max_connections,
                    )
                ),
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_CUT_OFF_SECONDS,
            )
        )

    @classmethod
    @asynccontextmanager
    async def opened(cls, config: ServerConfig) -> AsyncIterator["HttpPort"]:
        """Answers from now on. Raises ConfigError where the address is not to be had."""
        with listen("HTTP", "server.http", config.http) as listener:
            port = cls(listener, config)
            running = asyncio.create_task(port._web.serve([listener]), name="http")
            port._running = running
            try:
                await port._web.has_started(running)
                yield port
            finally:
                await port.close()

    async def close(self) -> None:
        """Takes no more connections, and cuts off what does not end by itself; again, nothing."""
        self._web.should_exit = True
        if self._running is not None:
            await self._running

    @property
    def number(self) -> int:
        return self._listener.getsockname()[1]

    def lead_to(self, app: ASGIApp) -> None:
        """From the next request on, those on open connections too. No connection is refused or
        closed meanwhile.
        """
        self._app = app

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _answer_while_starting(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads no body: uvicorn throws away what a client goes on sending."""
    if scope["type"] != "http":
        return
    if scope["path"] in ("/livez", "/readyz", "/health", "/ping"):
        status = 200 if scope["path"] == "/livez" else 503
        await JSONResponse({"status": "starting"}, status)(scope, receive, send)
        return
    error = Starting(
        "The server starts and has no engine yet; try again shortly.",
        retry_after_seconds=_COME_AGAIN_SECONDS,
    )
    await send_error(error, scope, receive, send)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would close streams before they have ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def has_started(self, running: asyncio.Task[None]) -> None:
        while not self.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)


def listen(transport: str, setting: str, address: str) -> socket.socket:
    """Bound here, since uvicorn ends the process where it cannot. Raises ConfigError."""
    host, port = split_address(setting, address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{transport} cannot listen on {address} ({error.strerror}): is another server running "
            f"there? Choose another address with --{transport.lower()}."
        ) from None
