"""A whole server around an engine that echoes: real registry, tokenizer, application."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import msgspec

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.app.build import build
from loragate.server.app.server import Server
from loragate.server.config import Config, LimitsConfig, RegistryConfig, Section, ServerConfig
from loragate.server.engine.supervision import StartEngine
from loragate.server.merged.backend import MergedBackend
from support.engines.echo_engine import EchoEngine
from support.models.one_layer import write_adapter
from support.registry.promotions import let_serve

SUPPORT = AdapterName("acme", "support")
Reply = httpx.Response


@dataclass
class Served:
    """A built server, its engine and registry, and a client that holds nobody's key."""

    server: Server
    engine: EchoEngine
    registry: Registry
    client: httpx.AsyncClient
    home: Home
    keys: dict[str, str]

    @property
    def admin_key(self) -> str:
        return self.home.admin_key({})

    @property
    def auth(self) -> dict[str, str]:
        return bearer(self.keys["acme"])

    def channel(self) -> grpc.aio.Channel:
        """To the server's port, which it has while it listens; the caller closes it."""
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.server.grpc_port}")

    async def chat(self, text: str = "hello", model: str = "support", **body: object) -> Reply:
        message = {"role": "user", "content": text}
        body = {"model": model, "messages": [message], **body}
        return await self.post("/v1/chat/completions", body)

    async def complete(self, prompt: object = "abc", **body: object) -> Reply:
        return await self.post("/v1/completions", {"model": "base", "prompt": prompt, **body})

    async def post(self, path: str, body: object, key: str = "acme") -> Reply:
        return await self.client.post(path, json=body, headers=bearer(self.keys[key]))


ServeWith = Callable[..., AbstractAsyncContextManager[Served]]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def small_config(**sections: Section) -> Config:
    """Free ports and a quick registry; a section that is given replaces the small one."""
    small: dict[str, Section] = {
        "server": ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0", max_body_bytes=100_000),
        "registry": RegistryConfig(poll_seconds=0.02),
        "limits": LimitsConfig(queue_timeout_seconds=5.0),
    }
    return msgspec.convert(small | sections, Config, from_attributes=True)


@dataclass(frozen=True)
class Furnished:
    """A home with tenants acme (adapter support, its champion v1) and globex (router, v1)."""

    root: Path
    keys: dict[str, str]


def furnish(root: Path) -> Furnished:
    home = Home(root).ensure()
    home.admin_key({})
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        keys = {tenant: registry.tenants.create(tenant).key for tenant in ("acme", "globex")}
        for seed, name in enumerate((SUPPORT, AdapterName("globex", "router"))):
            registry.versions.publish(name, write_adapter(root / f"adapter-{seed}", seed))
            let_serve(registry, name, "champion", 1)
    return Furnished(root, keys)


def _move_in(furnished: Furnished, root: Path) -> None:
    if not root.exists():
        shutil.copytree(furnished.root, root)


@asynccontextmanager
async def serve(
    furnished: Furnished,
    root: Path,
    base: BaseModel,
    engine: EchoEngine,
    config: Config | None = None,
    start: StartEngine | None = None,
    merged_backend: MergedBackend | None = None,
) -> AsyncIterator[Served]:
    """A server on a copy of the home, over `engine` or over what `start` starts.

    On a home that is there already it goes on: a restart.
    """
    _move_in(furnished, root)
    home = Home(root)
    start = start or (lambda: nullcontext(engine))
    config = config or small_config()
    async with build(config, home, base, start, merged_backend=merged_backend) as server:
        # What nobody foresaw is answered with 500 and raised again, for the web server's log.
        transport = httpx.ASGITransport(server.http, raise_app_exceptions=False)
        with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield Served(server, engine, registry, client, home, furnished.keys)


@asynccontextmanager
async def on_a_socket(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """The server on real ports: for streams as they come, and for clients that leave."""
    async with served.server.listening():
        url = f"http://127.0.0.1:{served.server.http_port}"
        async with httpx.AsyncClient(base_url=url, headers=served.auth) as client:
            yield client
