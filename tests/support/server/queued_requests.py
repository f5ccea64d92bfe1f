"""Requests in a fair queue that run until they are told to end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from loragate.server.admission.fair_queue import FairQueue, QueueGrant
from loragate.server.core import Route


@dataclass
class Crowd:
    """Requests that run until they are told to end."""

    queue: FairQueue
    running: dict[str, QueueGrant] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def start(self, name: str, where: Route, prompt_tokens: int = 1) -> None:
        self.tasks[name] = asyncio.create_task(self._take(name, where, prompt_tokens))
        await asyncio.sleep(0)

    async def end(self, name: str, tokens: int = 1) -> None:
        turn = self.running.pop(name)
        turn.charge(tokens)
        turn.end()
        await asyncio.sleep(0)  # whoever is next wakes up

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.tasks[name]

    async def _take(self, name: str, where: Route, prompt_tokens: int) -> None:
        self.running[name] = await self.queue.take(where, prompt_tokens)


@asynccontextmanager
async def crowd(queue: FairQueue) -> AsyncIterator[Crowd]:
    some = Crowd(queue)
    try:
        yield some
    finally:
        for task in some.tasks.values():
            task.cancel()
        await asyncio.gather(*some.tasks.values(), return_exceptions=True)
