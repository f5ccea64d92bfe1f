"""Loads in the background what was in use before a start of the engine or of the server.

After a start of the engine that is what was in use when the last one died; after a start of the
server, what a file in LORAGATE_HOME says. A file, since it speaks of this machine's engine: in the
registry each change of it would wake all who watch. It is written whole, every few seconds if it
has changed, so a crash loses seconds of a hint. Pinned versions come first.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.snapshot import Snapshot
from loragate.adapters.registry.states import AdapterState
from loragate.server.concurrency.retries import Backoff, Retries
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.errors import EngineDead
from loragate.server.residency.residency import Residency

logger = logging.getLogger(__name__)
_WRITE_SECONDS = 5.0
_RETRIES = Backoff(first=1.0, most=30.0)  # of pinned versions
_ENGINE_DOWN_SECONDS = 1.0


class HotList:
    """The versions in use, most recent first, on disk. Versions are told by id and digest, so that
    a file of another registry names nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one_write = threading.Lock()
        self._written: Sequence[AdapterVersion] | None = None

    def read(self) -> tuple[AdapterVersion, ...]:
        """Nothing where there is no file, or none that can be read: it is a hint."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[AdapterVersion, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("what was in use before is not known: %s: %s", self._path, error)
            return ()

    def write(self, versions: Sequence[AdapterVersion]) -> None:
        """Replaces the file, unless it says this already."""
        with self._one_write:
            if versions == self._written:
                return
            draft = self._path.with_suffix(".new")
            try:
                draft.write_bytes(msgspec.json.encode(versions))
                os.replace(draft, self._path)
            except OSError as error:
                logger.warning("what is in use cannot be kept: %s", error)
            else:
                self._written = versions


class Prefetch:
    """Loads one version after another; `running` owns its tasks."""

    def __init__(
        self,
        residency: Residency,
        snapshot: Callable[[], Snapshot],
        hot: HotList,
        background: BackgroundTasks | None = None,
        retries: Retries[AdapterVersion] | None = None,
    ) -> None:
        self._residency = residency
        self._snapshot = snapshot
        self._hot = hot
        self._background = background or BackgroundTasks()
        self._retries = retries or Retries(_RETRIES)
        self._wanted: dict[AdapterVersion, None] = {}  # in this order
        self._loading: tuple[AdapterVersion, ...] = ()  # the one that is no longer in `_wanted`
        self._has_work = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Prefetch"]:
        self.want(await asyncio.to_thread(self._hot.read))
        try:
            async with (
                self._background.repeating("prefetch", self._load_next, wait=self._wait),
                self._background.repeating(
                    "hot list", self._keep_list, wait=partial(asyncio.sleep, _WRITE_SECONDS)
                ),
            ):
                yield self
        finally:
            self._hot.write(self._in_use())

    def want(self, versions: Iterable[AdapterVersion], *, first: bool = False) -> None:
        """Loads these too, after what is wanted already, or before."""
        added = dict.fromkeys(versions)
        self._wanted = added | self._wanted if first else self._wanted | added
        self._has_work.set()

    def restore(self) -> None:
        """The engine has restarted and holds nothing: what was held is wanted again."""
        for version in self._wanted:
            self._retries.forget(version)  # it waited for the engine
        self.want(self._residency.forget_all(), first=True)

    async def _wait(self) -> None:
        """Returns when there is something new to load, or something to be tried again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._retries.next_seconds):
                await self._has_work.wait()

    async def _load_next(self) -> None:
        self._retries.keep(self._wanted)
        version = next((v for v in self._wanted if self._retries.is_due(v)), None)
        if version is None:
            self._has_work.clear()
            return
        # Taken out first, so that who wants it again meanwhile, after a restart, can put it back.
        del self._wanted[version]
        self._loading = (version,)
        try:
            if self._can_serve(version):
                await self._residency.prefetch(version, lambda: self._can_serve(version))
        except EngineDead:
            self._retries.postpone(version, _ENGINE_DOWN_SECONDS)
            self.want([version], first=True)
        except LoragateError as error:
            logger.warning("%s is not loaded ahead: %s", version, error)
            if self._residency.is_pinned(version):  # others come when they are asked for
                self._retries.failed(version)
                self.want([version], first=True)
        else:
            self._retries.forget(version)
        finally:
            self._loading = ()

    def _can_serve(self, version: AdapterVersion) -> bool:
        entry = self._snapshot().entries(version.tenant, version.name).get(version.lora_id)
        return (
            entry is not None
            and entry.version == version
            and entry.is_usable
            and entry.state not in (AdapterState.FAILED, AdapterState.DRAINING)
        )

    async def _keep_list(self) -> None:
        await asyncio.to_thread(self._hot.write, self._in_use())

    def _in_use(self) -> tuple[AdapterVersion, ...]:
        """What is resident, last use first, and then what is to be so again."""
        return tuple(
            dict.fromkeys((*reversed(self._residency.resident), *self._loading, *self._wanted))
        )
