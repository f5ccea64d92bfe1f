"""What the engine tests stand on: two tenants with two adapters each, and a server of them."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion

ROOT = Path(__file__).parents[2]
ADAPTERS = ("acme/support", "acme/loud", "globex/router", "globex/odd")


@dataclass(frozen=True, slots=True)
class World:
    """Two tenants with two adapters each, published and promoted, in a home of their own."""

    home: Home
    keys: Mapping[str, str]
    versions: Mapping[str, AdapterVersion]
    folders: Mapping[str, Path]


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
