"""The server removes, every now and then, what killed processes left on the disk."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial

from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.temporary_folders import sweep_temporary_folders
from loragate.server.concurrency.pools import in_pool
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.config import RegistryConfig
from loragate.server.core import ACTOR

logger = logging.getLogger(__name__)


@asynccontextmanager
async def collecting(
    registry: Registry,
    home: Home,
    config: RegistryConfig,
    background: BackgroundTasks,
    pool: Executor | None = None,
) -> AsyncIterator[None]:
    """Owns the task that collects orphaned artifacts and abandoned temporary folders, in the
    threads of `pool`. Files of retired versions stay: whether those go is for an operator to say.
    """
    if config.collect_seconds == 0:
        yield
        return
    collect = partial(_collect, registry, home, config.orphans_after_seconds)
    # Not at the start, which is busy enough; so a server that lives less than that collects nothing
    # and leaves it to the next.
    round_ = background.repeating(
        "artifact collection",
        partial(in_pool, pool, collect),
        wait=partial(asyncio.sleep, config.collect_seconds),
    )
    async with round_:
        yield


def _collect(registry: Registry, home: Home, orphans_after_seconds: float) -> None:
    """Raises StoreError."""
    for digest in registry.artifacts.collect_orphans(
        ACTOR, orphans_after_seconds=orphans_after_seconds
    ):
        logger.info("removed the artifact %s, which no version came to refer to", digest)
    for parent in (None, home.root):
        if removed := sweep_temporary_folders(parent):
            logger.info("removed %d temporary folders of processes that are dead", removed)
