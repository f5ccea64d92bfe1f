"""A merged_backend for merged models around engines that echo."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.names import AdapterVersion
from loragate.server.engine.memory import MemoryRequirement
from loragate.server.engine.protocol import Engine
from loragate.server.merged.backend import MergedBackend
from support.engines.echo_engine import EchoEngines
from support.server.small_server import SUPPORT, Served

PLENTY = 64 * 2**30


@dataclass
class Bench:
    """A backend whose engines echo; it makes what is missing out of the base model's folder."""

    base: BaseModel
    engines: EchoEngines = field(default_factory=EchoEngines)
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    free_bytes: int = PLENTY
    free_host_bytes: int = PLENTY
    made: list[AdapterVersion] = field(default_factory=list)
    needs: list[MemoryRequirement] = field(default_factory=list)
    served: Served | None = None
    may_make: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: list[AdapterVersion] = field(default_factory=list)  # while they were made

    def __post_init__(self) -> None:
        self.may_start.set()
        self.may_make.set()

    @property
    def server(self) -> Served:
        assert self.served is not None
        return self.served

    @property
    def merged_backend(self) -> MergedBackend:
        return MergedBackend(
            self._start, self._make, lambda: self.free_bytes, lambda: self.free_host_bytes
        )

    @asynccontextmanager
    async def _start(self, folder: Path, need: MemoryRequirement) -> AsyncIterator[Engine]:
        self.needs.append(need)
        await self.may_start.wait()
        async with self.engines.start() as engine:
            yield engine

    async def _make(self, version: AdapterVersion) -> None:
        try:
            await self.may_make.wait()
        except asyncio.CancelledError:
            self.given_up.append(version)
            raise
        self.server.registry.merges.attach(SUPPORT, version.number, self.base.path)
        self.made.append(version)
