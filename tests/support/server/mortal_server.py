"""`loragate serve` that dies, as of kill -9, at a step that a file in its home names."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.server.app.build import run
from loragate.server.config import load_config
from loragate.server.engine.protocol import Engine, LoadedAdapter
from support.engines.stepping_engine import SteppingEngine, telling_transactions


@dataclass(frozen=True, slots=True)
class Fate:
    """Files in a home: the step at which its server is to die, and what its engine holds."""

    home: Path

    @property
    def last_step(self) -> Path:
        return self.home / "last-step"

    @property
    def in_engine(self) -> Path:
        return self.home / "in-engine.json"

    def reach(self, step: str) -> None:
        if self.last_step.exists() and self.last_step.read_text() == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def holds(self, versions: list[str]) -> None:
        draft = self.in_engine.with_suffix(".draft")
        draft.write_text(json.dumps(sorted(versions)))
        draft.rename(self.in_engine)


@dataclass
class MortalEngine(SteppingEngine):
    fate: Fate = field(kw_only=True)

    async def load(self, adapter: LoadedAdapter) -> None:
        await super().load(adapter)
        self._tell()

    async def unload(self, adapter: LoadedAdapter) -> None:
        await super().unload(adapter)
        self._tell()

    def _tell(self) -> None:
        self.fate.holds([str(adapter.version) for adapter in self.loaded.values()])


def serve_mortal(home: Path, model: Path) -> None:
    fate = Fate(home)
    fate.holds([])

    @asynccontextmanager
    async def engine() -> AsyncIterator[Engine]:
        yield MortalEngine(reach=fate.reach, fate=fate)

    base = BaseModel("tiny", model, "sha256:0")
    with telling_transactions(fate.reach):
        asyncio.run(run(load_config(None), Home(home), base, engine))
