"""What a server says before it has an engine, on the port that it then serves on."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from loadtests.ports import free_port
from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.server.app.build import run
from loragate.server.concurrency.daemon_threads import in_daemon_thread
from loragate.server.config import Config, ConfigError, ServerConfig
from loragate.server.engine.protocol import Engine
from support.engines.echo_engine import EchoEngine
from support.server.small_server import Furnished, bearer, small_config


@pytest.fixture
def config() -> Config:
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    return small_config(server=ServerConfig(http=http, grpc=grpc))


@pytest.fixture
def home(furnished: Furnished, tmp_path: Path) -> Home:
    shutil.copytree(furnished.root, tmp_path / "home")
    return Home(tmp_path / "home")


class Starting:
    """`loragate serve` with an engine that starts when it may."""

    def __init__(self, config: Config, home: Home, base: BaseModel) -> None:
        self.may_start = asyncio.Event()
        self.starts = 0
        self.running = asyncio.create_task(run(config, home, base, self._start))

    @asynccontextmanager
    async def _start(self) -> AsyncIterator[Engine]:
        self.starts += 1
        await self.may_start.wait()
        yield EchoEngine()


@pytest.fixture
async def starting(config: Config, home: Home, base: BaseModel) -> AsyncIterator[Starting]:
    starting = Starting(config, home, base)
    yield starting
    starting.running.cancel()
    await asyncio.wait({starting.running})


@pytest.fixture
async def client(config: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{config.server.http}", timeout=10) as client:
        yield client


async def answered(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """Asks until the status comes; fails after some seconds."""
    async with asyncio.timeout(20):
        while True:
            try:
                answer = await client.get(path)
            except httpx.ConnectError:
                answer = None
            if answer is not None and answer.status_code == status:
                return answer
            await asyncio.sleep(0.01)


async def test_probes_hear_that_the_server_starts_and_others_to_come_again(
    starting: Starting, client: httpx.AsyncClient, furnished: Furnished
) -> None:
    live = await answered(client, "/livez", 200)
    assert live.json() == {"status": "starting"}
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"status": "starting"})
    body = {"model": "support", "messages": [{"role": "user", "content": "x" * 50_000}]}
    for answer in (
        await client.post(
            "/v1/chat/completions", json=body, headers=bearer(furnished.keys["acme"])
        ),
        await client.get("/v1/models"),
        await client.get("/metrics"),
        await client.get("/nowhere"),
    ):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "starting"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["x-request-id"]


PAGE = "https://page.example"


class TestWithPages:
    @pytest.fixture
    def config(self) -> Config:
        http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
        return small_config(server=ServerConfig(http=http, grpc=grpc, cors_origins=(PAGE,)))

    async def test_a_page_hears_that_the_server_starts(
        self, starting: Starting, client: httpx.AsyncClient
    ) -> None:
        await answered(client, "/livez", 200)
        headers = {"origin": PAGE, "access-control-request-method": "POST"}
        asked = await client.options("/v1/chat/completions", headers=headers)
        assert asked.status_code == 200
        answer = await client.post("/v1/chat/completions", json={}, headers={"origin": PAGE})
        assert answer.status_code == 503
        for each in (asked, answer):
            assert each.headers["access-control-allow-origin"] == PAGE
        other = await client.get("/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_server_takes_over_its_port_without_a_gap(
    starting: Starting, client: httpx.AsyncClient, config: Config, furnished: Furnished
) -> None:
    await answered(client, "/livez", 200)
    refusals: list[httpx.TransportError] = []
    statuses: set[int] = set()

    async def keep_asking() -> None:
        while True:
            try:  # by a connection of its own each time
                async with httpx.AsyncClient() as other:
                    url = f"http://{config.server.http}/readyz"
                    statuses.add((await other.get(url)).status_code)
            except httpx.TransportError as error:
                refusals.append(error)
            await asyncio.sleep(0.001)

    asking = asyncio.create_task(keep_asking())
    opened = client._transport._pool.connections  # type: ignore[attr-defined]
    starting.may_start.set()
    await answered(client, "/readyz", 200)
    asking.cancel()
    assert (refusals, statuses) == ([], {200, 503}) or (refusals, statuses) == ([], {503})
    assert client._transport._pool.connections == opened  # type: ignore[attr-defined]
    answer = await client.post(
        "/v1/completions",
        json={"model": "base", "prompt": "abc", "max_tokens": 2},
        headers=bearer(furnished.keys["acme"]),
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_address_that_is_taken_is_told_before_the_engine_starts(
    transport: str, config: Config, home: Home, base: BaseModel
) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    address = f"127.0.0.1:{taken.sockets[0].getsockname()[1]}"
    server = msgspec.structs.replace(config.server, **{transport: address})
    starting = Starting(msgspec.structs.replace(config, server=server), home, base)
    with pytest.raises(ConfigError, match=f"cannot listen on {address}.*--{transport}"):
        await asyncio.wait_for(starting.running, 20)
    assert starting.starts == 0
    taken.close()


async def test_work_that_cannot_be_stopped_is_left_behind_by_who_is_cancelled() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(20)
        has_ended.set()

    waiting = asyncio.create_task(in_daemon_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not has_ended.is_set()
    may_end.set()
    assert await asyncio.to_thread(has_ended.wait, 20)


async def test_work_in_a_daemon_thread_returns_and_raises_as_if_it_were_here() -> None:
    assert await in_daemon_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0)
