"""A server that is asked to stop: a process of its own, with real signals."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc
from support.server.echo_server import serve_echo, serve_hindered
from support.server.processes import ServerProcess, launched, started
from support.server.small_server import SUPPORT, Furnished, bearer
from support.waiting import wait_for

LONG = "one two three four five six seven eight nine ten"
STREAM = {"model": "base", "prompt": LONG, "max_tokens": 40, "stream": True}
PACE_SECONDS = 0.05
Start = Callable[[float], AbstractContextManager[ServerProcess]]


@pytest.fixture
def key(furnished: Furnished) -> str:
    return furnished.keys["acme"]


@pytest.fixture
def start(forks: ForkServerContext, furnished: Furnished, base: BaseModel, tmp_path: Path) -> Start:
    """Starts a server that gives what runs so many seconds when it is asked to stop."""

    def start_it(drain_seconds: float) -> AbstractContextManager[ServerProcess]:
        return started(
            forks,
            serve_echo,
            *(furnished.root, base.path, PACE_SECONDS),
            log=tmp_path / "log",
            environment={"LORAGATE_SERVER_DRAIN_SECONDS": str(drain_seconds)},
        )

    return start_it


def streaming_over_grpc(server: ServerProcess, key: str) -> Iterator[pb.CompletionChunk]:
    """STREAM, over the other transport."""
    stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(server.grpc))
    return stub.CompleteStream(
        pb.CompletionRequest(
            model="base",
            prompts=[pb.Prompt(text=LONG)],
            sampling=pb.SamplingParams(max_tokens=40),
        ),
        metadata=(("authorization", f"Bearer {key}"),),
    )


def test_sigterm_lets_streams_finish_refuses_new_requests_and_exits_with_0(
    start: Start, key: str
) -> None:
    with start(20) as server:
        call = streaming_over_grpc(server, key)
        health: Any = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.grpc))
        url = f"http://{server.http}/v1/completions"
        with httpx.stream("POST", url, json=STREAM, headers=bearer(key), timeout=20) as answer:
            events = answer.iter_lines()
            next(events)
            next(call)

            server.process.terminate()

            assert wait_for(lambda: server.status("/readyz") == 503, 1)
            assert server.status("/livez") == 200
            serving = health_pb2.HealthCheckResponse.SERVING
            assert health.Check(health_pb2.HealthCheckRequest()).status != serving
            refused = httpx.post(url, json=STREAM, headers=bearer(key))
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert "retry-after" in refused.headers

            assert [line for line in events if line][-1] == "data: [DONE]"
        assert len(list(call)) == 39
        assert server.ended(5) == 0


def test_second_sigterm_ends_at_once(start: Start, key: str) -> None:
    url = "/v1/completions"
    with (
        start(20) as server,
        httpx.Client(base_url=f"http://{server.http}", headers=bearer(key)) as client,
        client.stream("POST", url, json=STREAM) as answer,
    ):
        events = answer.iter_lines()  # kept: letting go of it would close the connection
        next(events)
        server.process.terminate()
        assert wait_for(lambda: server.status("/readyz") == 503, 1)
        server.process.terminate()
        assert server.ended(1) == 128 + signal.SIGTERM


def test_stream_that_outlasts_the_grace_time_ends_with_an_error_that_says_so(
    start: Start, key: str
) -> None:
    with (
        start(0.2) as server,
        httpx.Client(base_url=f"http://{server.http}", headers=bearer(key)) as client,
        client.stream("POST", "/v1/completions", json=STREAM) as answer,
    ):
        call = streaming_over_grpc(server, key)
        lines = answer.iter_lines()
        next(lines)
        next(call)
        server.process.terminate()

        *_, error, done = [line for line in lines if line]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "draining"
        assert done == "data: [DONE]"
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "has stopped before the answer's end" in str(ended.value)
        assert server.ended(10) == 0


def test_answer_that_outlasts_the_grace_time_is_an_error_with_a_status(
    start: Start, key: str
) -> None:
    with (
        start(0.2) as server,
        httpx.Client(base_url=f"http://{server.http}", headers=bearer(key)) as client,
        ThreadPoolExecutor() as others,
    ):
        answer = others.submit(client.post, "/v1/completions", json=STREAM | {"stream": False})
        metrics = f"http://{server.http}/metrics"
        assert wait_for(lambda: "loragate_requests_running 1.0" in httpx.get(metrics).text, 5)
        server.process.terminate()

        reply = answer.result(10)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining")
        assert server.ended(10) == 0


def test_second_server_on_the_same_home_is_refused_at_once(
    start: Start, forks: ForkServerContext, furnished: Furnished, base: BaseModel, tmp_path: Path
) -> None:
    arguments, log = (furnished.root, base.path, PACE_SECONDS), tmp_path / "second.log"
    with start(1), launched(forks, serve_echo, *arguments, log=log) as second:
        assert second.ended(10) == 1
    assert "another server runs on" in log.read_text()


STATES = ("starting", "restarting", "failing", "loading")


@pytest.fixture
def hinder(
    forks: ForkServerContext, furnished: Furnished, base: BaseModel, tmp_path: Path
) -> Callable[[str], AbstractContextManager[ServerProcess]]:
    """Starts a server that gets into a state and no further, and lends it when it is there."""

    @contextmanager
    def hinder_it(state: str) -> Iterator[ServerProcess]:
        root, log = tmp_path / "home", tmp_path / "log"
        shutil.copytree(furnished.root, root)
        home = Home(root)
        with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
            registry.aliases.set(SUPPORT, "challenger", 1)  # something to load
        log.touch()
        with launched(forks, serve_hindered, root, base.path, state, log=log) as server:
            assert wait_for(lambda: state in log.read_text().splitlines(), 30), log.read_text()
            yield server

    return hinder_it


@pytest.mark.parametrize("state", STATES)
def test_sigterm_ends_the_server_from_every_state(
    hinder: Callable[[str], AbstractContextManager[ServerProcess]], state: str
) -> None:
    with hinder(state) as server:
        server.process.terminate()
        assert server.ended(10) == 0, server.log.read_text()


def test_server_that_does_not_end_by_itself_is_ended_after_its_time(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, signal, time\n"
        "from loragate.server.app.serving import Stopping\n"
        "async def serve():\n"
        "    with Stopping(0.2).on_signals():\n"
        "        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)\n"
        "        await asyncio.sleep(0.1)\n"
        "        time.sleep(60)\n"  # the loop itself is stuck
        "asyncio.run(serve())\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30).returncode == 1
