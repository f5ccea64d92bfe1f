"""The server as one thing that listens on two ports, takes requests, and drains."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from loragate.server.admission import Admission
from loragate.server.background import BackgroundTasks
from loragate.server.config import ConfigError, ServerConfig, split_address
from loragate.server.deadlines import Deadlines
from loragate.server.health import Health
from loragate.server.http.connections import ConnectionBounds, bounded_connections
from loragate.server.rpc.server import GrpcServer
from loragate.server.supervision import EngineState

logger = logging.getLogger(__name__)
_TELL_SECONDS = 1.0  # a background task that fails for too long makes no event
_CUT_OFF_SECONDS = 1  # for what was cut off to tell its client


@dataclass(slots=True)
class Server:
    """Both transports over one gateway; `http` is the ASGI application."""

    config: ServerConfig
    http: ASGIApp
    grpc: GrpcServer
    health: Health
    admission: Admission
    deadlines: Deadlines
    background: BackgroundTasks
    http_port: int = 0
    grpc_port: int = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Takes requests on both ports. Raises ConfigError where an address is not to be had."""
        with listen(self.config.http) as listener:
            web = _Uvicorn(
                uvicorn.Config(
                    self.http,
                    http=bounded_connections(
                        ConnectionBounds(
                            self.config.head_timeout_seconds,
                            self.config.write_timeout_seconds,
                            self.config.max_connections,
                        )
                    ),
                    ws="none",
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    timeout_graceful_shutdown=_CUT_OFF_SECONDS,
                )
            )
            self.grpc_port = await self._start_grpc()
            running = asyncio.create_task(web.serve([listener]), name="http")
            try:
                await web.has_started(running)
                self.http_port = listener.getsockname()[1]
                await self._tell_health()
                logger.info(
                    "serving HTTP on %s and gRPC on %s",
                    _with_port(self.config.http, self.http_port),
                    _with_port(self.config.grpc, self.grpc_port),
                )
                tell = self.background.repeating(
                    "gRPC health", self._tell_health, wait=partial(asyncio.sleep, _TELL_SECONDS)
                )
                async with tell:
                    yield
            finally:
                web.should_exit = True
                await asyncio.gather(running, self.grpc.stop(_CUT_OFF_SECONDS))
                await self.admission.drained()  # what was cut off writes its usage record yet

    async def drain(self) -> None:
        """Takes nothing new, and waits for what runs, `drain_seconds` at most; then that is told
        that it ends.
        """
        logger.info("stopping: no new requests, %d under way", self.admission.in_flight)
        self.health.drain()
        self.admission.is_draining = True
        await self.grpc.set_serving(False)
        try:
            async with asyncio.timeout(self.config.drain_seconds):
                await self.admission.drained()
        except TimeoutError:
            logger.warning("%d requests are cut off", self.admission.in_flight)
            self.deadlines.cut_off()

    async def follow(self, state: EngineState) -> None:
        """Tells gRPC's health; HTTP's probes ask for themselves."""
        logger.info("the engine is %s", state)
        await self._tell_health()

    async def _tell_health(self) -> None:
        await self.grpc.set_serving(self.health.is_ready)

    async def _start_grpc(self) -> int:
        address = self.config.grpc
        try:
            return await self.grpc.start(address)
        except RuntimeError:
            raise ConfigError(
                f"gRPC cannot listen on {address}: is another server running there? "
                "Choose another address with --grpc."
            ) from None


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would close streams before they have ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def has_started(self, running: asyncio.Task[None]) -> None:
        while not self.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)


def listen(address: str) -> socket.socket:
    """Bound here, since uvicorn ends the process where it cannot. Raises ConfigError."""
    host, port = split_address("server.http", address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"HTTP cannot listen on {address} ({error.strerror}): is another server running "
            "there? Choose another address with --http."
        ) from None


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"
