"""The server as one thing that listens on two ports, takes requests, and drains."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from loragate.server.admission.admission import Admission
from loragate.server.admission.deadlines import Deadlines
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.config import ConfigError, ServerConfig
from loragate.server.engine.supervision import EngineState
from loragate.server.http.port import HttpPort
from loragate.server.rpc.server import GrpcServer
from loragate.server.telemetry.health import Health
from loragate.server.upkeep.registry_lock import RegistryLock

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
    registry_lock: RegistryLock
    http_port: int = 0
    grpc_port: int = 0

    @asynccontextmanager
    async def listening(self, port: HttpPort | None = None) -> AsyncIterator[None]:
        """Takes requests on both ports; `port` is HTTP's where it is open already. Raises
        ConfigError where an address is not to be had.
        """
        async with AsyncExitStack() as stack:
            if port is None:
                port = await stack.enter_async_context(HttpPort.opened(self.config))
            self.http_port = port.number
            self.grpc_port = await self._start_grpc()
            try:
                port.lead_to(self.http)
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
                await asyncio.gather(port.close(), self.grpc.stop(_CUT_OFF_SECONDS))
                await self.admission.drained()  # what was cut off writes its usage record yet

    async def drain(self) -> None:
        """Takes nothing new, and waits for what runs, `drain_seconds` at most; then that is told
        that it ends.
        """
        logger.info("stopping: no new requests, %d under way", self.admission.present)
        self.health.drain()
        self.admission.is_draining = True
        await self.grpc.set_serving(False)
        try:
            async with asyncio.timeout(self.config.drain_seconds):
                await self.admission.drained()
        except TimeoutError:
            logger.warning("%d requests are cut off", self.admission.present)
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


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"
