"""A server whose engine does what it is told, on ports of its own, until its input ends.

`python -m support.server.obedient_server FOLDER` prints one line of JSON once it is there: its
addresses, a tenant's key, a model of that tenant, and a folder with its tokenizer.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from loragate.server.config import LimitsConfig, RegistryConfig, ServerConfig
from support.engines.echo_engine import TINY_MODEL
from support.engines.obedient_engine import ObedientEngine
from support.models.one_layer import write_base
from support.server.small_server import Served, furnish, serve, small_config

MAX_MODEL_LEN = 16_384


@asynccontextmanager
async def obedient(folder: Path) -> AsyncIterator[Served]:
    engine = ObedientEngine(replace(TINY_MODEL, max_model_len=MAX_MODEL_LEN))
    config = small_config(
        server=ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0"),
        registry=RegistryConfig(poll_seconds=0.5),
        limits=LimitsConfig(queue_timeout_seconds=30.0),
    )
    base = write_base(folder / "tiny")
    furnished = furnish(folder / "furnished")
    async with (
        serve(
            furnished, folder / "home", base, engine, config, lambda: nullcontext(engine)
        ) as served,
        served.server.listening(),
    ):
        yield served


async def _serve(folder: Path) -> None:
    async with obedient(folder) as served:
        server = served.server
        addresses = {
            "http": f"http://127.0.0.1:{server.http_port}",
            "grpc": f"127.0.0.1:{server.grpc_port}",
        }
        asked = {"key": served.keys["acme"], "model": "support", "tokenizer": str(folder / "tiny")}
        print(json.dumps(addresses | asked), flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
