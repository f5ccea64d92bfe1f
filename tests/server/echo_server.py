"""`loragate serve` with an engine that echoes: `echo_server.py HOME MODEL PACE_SECONDS`."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fakes import EchoEngine

from loragate.adapters.base_model import BaseModel
from loragate.adapters.home import Home
from loragate.server.app import run
from loragate.server.config import load_config
from loragate.server.engine import Engine


@asynccontextmanager
async def echoing(pace_seconds: float) -> AsyncIterator[Engine]:
    yield EchoEngine(pace_seconds=pace_seconds)


def serve_echo(home: Path, model: Path, pace_seconds: float) -> None:
    base = BaseModel("tiny", model, "sha256:0")
    asyncio.run(run(load_config(None), Home(home), base, lambda: echoing(pace_seconds)))


if __name__ == "__main__":
    home, model, pace = sys.argv[1:]
    serve_echo(Path(home), Path(model), float(pace))
