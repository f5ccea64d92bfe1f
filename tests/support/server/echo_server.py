"""`loragate serve` with an engine that echoes.

`python -m support.server.echo_server HOME MODEL PACE_SECONDS`
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.server.app.build import run
from loragate.server.config import load_config
from loragate.server.engine.protocol import Engine, LoadedAdapter
from support.engines.echo_engine import EchoEngine


@asynccontextmanager
async def echoing(pace_seconds: float) -> AsyncIterator[Engine]:
    yield EchoEngine(pace_seconds=pace_seconds)


def serve_echo(home: Path, model: Path, pace_seconds: float) -> None:
    base = BaseModel("tiny", model, "sha256:0")
    asyncio.run(run(load_config(None), Home(home), base, lambda: echoing(pace_seconds)))


@dataclass
class Hindered:
    """Engines that keep a server from getting any further, each in the state that names it."""

    state: str
    starts: int = 0

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Engine]:
        self.starts += 1
        match self.state, self.starts:
            case ("starting", _) | ("restarting", 2):
                print(self.state, flush=True)
                await asyncio.Event().wait()
            case "failing", starts if starts > 1:
                print(self.state, flush=True)
                raise RuntimeError("There is no memory for the model.")
            case "loading", _:
                yield StuckEngine()
            case _:
                yield EchoEngine(is_alive=False)


class StuckEngine(EchoEngine):
    """Never answers that an adapter is loaded."""

    async def load(self, adapter: LoadedAdapter) -> None:
        print("loading", flush=True)
        await asyncio.Event().wait()


def serve_hindered(home: Path, model: Path, state: str) -> None:
    """The log has the state's name on a line of its own once the server is in it."""
    base = BaseModel("tiny", model, "sha256:0")
    asyncio.run(run(load_config(None), Home(home), base, Hindered(state).start))


if __name__ == "__main__":
    home, model, pace = sys.argv[1:]
    serve_echo(Path(home), Path(model), float(pace))
