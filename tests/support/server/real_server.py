"""What the engine tests stand on: two tenants with two adapters each, and a server of them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtests.ports import free_port
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.waiting import wait_for

START_SECONDS = 280.0
ROOT = Path(__file__).parents[3]
ADAPTERS = ("acme/support", "acme/loud", "globex/router", "globex/odd")


@dataclass(frozen=True, slots=True)
class World:
    """Two tenants with two adapters each, published and promoted, in a home of their own."""

    home: Home
    keys: Mapping[str, str]
    versions: Mapping[str, AdapterVersion]
    folders: Mapping[str, Path]
    weights: Mapping[str, Path]  # more adapters, which a test may publish

    def registry(self) -> Registry:
        return Registry(self.home.database_url, ArtifactStore(self.home.artifacts))


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and what tests need to talk to it."""

    world: World
    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.http}"


@contextmanager
def running(world: World, log: Path, **settings: str) -> Iterator[Served]:
    """Starts a server, lends it once all targets are served, and kills it."""
    with starting(world, log, **settings) as server:
        wait_until_started(server)
        yield server


@contextmanager
def starting(world: World, log: Path, **settings: str) -> Iterator[Served]:
    """Starts a server, as a user would, lends it at once, and kills it. `settings` are variables
    of its environment, in place of those here.
    """
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = os.environ | {
        "LORAGATE_HOME": str(world.home.root),
        "LORAGATE_SERVER_HTTP": http,
        "LORAGATE_SERVER_GRPC": grpc,
        "LORAGATE_ENGINE_DTYPE": "float32",
        "LORAGATE_ENGINE_MAX_LORAS": "3",  # fewer than there are adapters
        "LORAGATE_ENGINE_MAX_CPU_LORAS": "10",
        "LORAGATE_LIMITS_SLOT_TURN_SECONDS": "0.05",
        "LORAGATE_ENGINE_MAX_LORA_RANK": "16",
        "LORAGATE_ENGINE_MAX_MODEL_LEN": "1024",
        "LORAGATE_ENGINE_KV_CACHE_GIB": "1",
        "LORAGATE_ENGINE_CHECK_SLOTS": "step",
        **settings,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "loragate.server.cli.main", "serve"],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield Served(world, process, http, grpc, log)
    finally:
        process.kill()
        process.wait()


def wait_until_started(server: Served) -> None:
    has_started = wait_for(lambda: _has_started(server), START_SECONDS)
    assert has_started, server.log.read_text()[-4000:]


def _has_started(server: Served) -> bool:
    assert server.process.poll() is None, server.log.read_text()[-4000:]
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/readyz").is_success and _all_serve(server.world)
    return False


def _all_serve(world: World) -> bool:
    """Whether the server has loaded, checked and promoted what was wished for."""
    with world.registry() as registry:
        return all(
            target.desired == target.serving for target in registry.snapshot().desired_aliases()
        )
