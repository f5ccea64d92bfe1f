"""The steps of a server's work, each told by name before it goes on, for tests that break it there.

A registry's steps are named by audit rows, which every change has, before and after the commit:
``acme/support@v2 LOADING written`` and ``… committed``. An engine's: ``acme/support@v2 load`` and
``… loaded``, ``score`` and ``scored`` for the check's prompts, ``unload`` and ``unloaded``.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.orm import Session

from loragate.adapters.registry.tables import Audit
from loragate.server.core import Delta
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter
from loragate.server.errors import EngineDead
from support.engines.echo_engine import EchoEngine

Reach = Callable[[str], None]


def weights_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@contextmanager
def telling_transactions(reach: Reach) -> Iterator[None]:
    """Of all registries of this process."""

    def write(session: Session, _context: object) -> None:
        for row in session.new:
            if isinstance(row, Audit):
                step = f"{row.subject} {row.to_state or row.action}"
                session.info.setdefault("steps", []).append(step)
                reach(f"{step} written")

    def commit(session: Session) -> None:
        for step in session.info.pop("steps", ()):
            reach(f"{step} committed")

    event.listen(Session, "after_flush", write)
    event.listen(Session, "after_commit", commit)
    try:
        yield
    finally:
        event.remove(Session, "after_flush", write)
        event.remove(Session, "after_commit", commit)


@dataclass
class SteppingEngine(EchoEngine):
    """Answers with the digest of the weights that it holds, as it read them at their load."""

    reach: Reach = field(kw_only=True)
    weights: dict[int, str] = field(default_factory=dict)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        adapter = request.adapter
        if not request.id.startswith("probe-"):
            text = "base" if adapter is None else self.weights[adapter.version.lora_id]
            yield Delta(index=0, text=text, token_ids=(0,), finish_reason="stop")
            return
        self._reach(adapter, "score")
        yield self._scored(request)
        self._reach(adapter, "scored")
        if not self.is_alive:
            raise EngineDead("The engine was killed.")

    async def load(self, adapter: LoadedAdapter) -> None:
        self._reach(adapter, "load")
        await super().load(adapter)
        self.weights[adapter.version.lora_id] = weights_digest(adapter.path)
        self._reach(adapter, "loaded")
        await self._answer()

    async def unload(self, adapter: LoadedAdapter) -> None:
        self._reach(adapter, "unload")
        await super().unload(adapter)
        del self.weights[adapter.version.lora_id]
        self._reach(adapter, "unloaded")
        await self._answer()

    def _reach(self, adapter: LoadedAdapter | None, step: str) -> None:
        if adapter is not None:
            self.reach(f"{adapter.version} {step}")
