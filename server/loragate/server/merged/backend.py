"""What the machine can do for merged models: start engines on them, and make them."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.errors import LoragateError
from loragate.adapters.host_memory import free_host_bytes
from loragate.adapters.names import AdapterVersion
from loragate.server.engine.memory import FreeBytes, MemoryRequirement
from loragate.server.engine.protocol import Engine


async def _make_none(version: AdapterVersion) -> None:
    raise LoragateError(
        f"{version} has no merged model, and this server makes none; make it with "
        f"`loragate merge {version}`"
    )


def _start_none(folder: Path, need: MemoryRequirement) -> AbstractAsyncContextManager[Engine]:
    raise LoragateError("this server has no engine for merged models")


@dataclass(frozen=True, slots=True)
class MergedBackend:
    """What the machine can do for merged models: start an engine on a folder, make the merged model
    of a version that has none and keep it in the registry, and say what memory is free: where
    engines compute, and where merged models are made, which is the host's in any case.
    """

    start: Callable[[Path, MemoryRequirement], AbstractAsyncContextManager[Engine]] = _start_none
    make: Callable[[AdapterVersion], Awaitable[None]] = _make_none
    free_bytes: FreeBytes = free_host_bytes
    free_host_bytes: FreeBytes = free_host_bytes
