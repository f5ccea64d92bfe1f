"""One server a registry, on a real PostgreSQL whose connections can be ended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import ServedElsewhere
from loragate.adapters.home import Home
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.app.build import build, run
from loragate.server.app.server import Server
from loragate.server.config import RegistryConfig
from support.engines.echo_engine import EchoEngine
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, small_config
from support.waiting import until

postgresql = pytest.importorskip("support.registry.postgresql", exc_type=ImportError)


@dataclass
class Beside:
    """A server on PostgreSQL, and what another process can do there."""

    server: Server
    registry: Registry
    client: httpx.AsyncClient

    async def until_readyz(self, state: str) -> None:
        async with asyncio.timeout(15):
            while state not in (await self.client.get("/readyz")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def state(self) -> AdapterState:
        snapshot = self.registry.snapshot()
        return snapshot.state(snapshot.resolve("acme", "support", "v1"))


def config_on(url: str):
    return small_config(registry=RegistryConfig(url=url, poll_seconds=0.02))


def furnish(registry: Registry, folder: Path) -> None:
    registry.tenants.create("acme")
    registry.versions.publish(SUPPORT, write_adapter(folder, 1))
    registry.aliases.set(SUPPORT, "champion", 1)


@asynccontextmanager
async def beside(url: str, root: Path, base: BaseModel) -> AsyncIterator[Beside]:
    home = Home(root / "home").ensure()
    with Registry(url, ArtifactStore(home.artifacts)) as registry:
        furnish(registry, root / "adapter")
        async with build(config_on(url), home, base, lambda: nullcontext(EchoEngine())) as server:
            transport = httpx.ASGITransport(server.http)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                found = Beside(server, registry, client)
                await until(lambda: found.state() is AdapterState.READY, 10)
                yield found


async def test_a_lost_lock_is_noticed_and_taken_again_and_states_are_put_right(
    postgresql_url: str, tmp_path: Path, base: BaseModel
) -> None:
    async with beside(postgresql_url, tmp_path, base) as found:
        assert (await found.client.get("/readyz")).status_code == 200

        postgresql.end_connections(postgresql_url)
        found.registry.states.reset("another server")

        assert found.state() is AdapterState.PUBLISHED
        await until(lambda: found.state() is AdapterState.READY, 15)
        await found.until_readyz('"ready"')


async def test_without_its_lock_the_server_is_not_ready(
    postgresql_url: str, tmp_path: Path, base: BaseModel
) -> None:
    async with beside(postgresql_url, tmp_path, base) as found:
        with postgresql.unreachable(postgresql_url):
            await found.until_readyz("degraded: registry lock")
            assert (await found.client.get("/livez")).status_code == 200
        await found.until_readyz('"ready"')


async def test_a_server_whose_registry_another_one_took_ends_and_says_so(
    postgresql_url: str, tmp_path: Path, base: BaseModel
) -> None:
    home = Home(tmp_path / "home").ensure()
    with Registry(postgresql_url, ArtifactStore(home.artifacts)) as other:
        furnish(other, tmp_path / "adapter")
        config = config_on(postgresql_url)
        serving = asyncio.create_task(run(config, home, base, lambda: nullcontext(EchoEngine())))
        version = other.snapshot().resolve("acme", "support", "v1")
        await until(lambda: other.snapshot().state(version) is AdapterState.READY, 20)
        await until(lambda: take_over(other, postgresql_url), 10)

        with pytest.raises(ServedElsewhere, match="another server runs on"):
            async with asyncio.timeout(20):
                await serving


def take_over(registry: Registry, url: str) -> bool:
    """As a second server does whose start falls into the moment in which the lock is lost."""
    lock = registry._database.serving_lock
    postgresql.execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    try:
        lock.take()
    except ServedElsewhere:
        return False
    return True
