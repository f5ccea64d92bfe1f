"""A server that is asked to stop: a process of its own, with real signals."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_server import Furnished, bearer

from loragate.adapters.base_model import BaseModel
from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc

HERE = Path(__file__).parent
LONG = "one two three four five six seven eight nine ten"
PACE_SECONDS = 0.05


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.key)

    def status(self, path: str) -> int:
        return httpx.get(f"http://{self.http}{path}").status_code


@contextmanager
def running(furnished: Furnished, base: BaseModel, log: Path, drain: float) -> Iterator[Running]:
    http, rpc = (f"127.0.0.1:{_free_port()}" for _ in range(2))
    environment = os.environ | {
        "LORAGATE_SERVER_HTTP": http,
        "LORAGATE_SERVER_GRPC": rpc,
        "LORAGATE_SERVER_DRAIN_SECONDS": str(drain),
    }
    arguments = [str(furnished.root), str(base.path), str(PACE_SECONDS)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "echo_server.py"), *arguments],
            env=environment,
            stderr=output,
        )
    try:
        server = Running(process, http, rpc, furnished.keys["acme"])
        assert _wait_for(lambda: _is_listening(http), 120), log.read_text()
        yield server
    finally:
        process.kill()
        process.wait()


def _is_listening(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/readyz").is_success
    except httpx.TransportError:
        return False


def _wait_for(claim: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_sigterm_lets_streams_finish_refuses_new_requests_and_exits_with_0(
    furnished: Furnished, base: BaseModel, tmp_path: Path
) -> None:
    body = {"model": "base", "prompt": LONG, "max_tokens": 40, "stream": True}
    with running(furnished, base, tmp_path / "log", drain=20) as server:
        stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(server.grpc))
        call = stub.CompleteStream(
            pb.CompletionRequest(
                model="base",
                prompts=[pb.Prompt(text=LONG)],
                sampling=pb.SamplingParams(max_tokens=40),
            ),
            metadata=(("authorization", f"Bearer {server.key}"),),
        )
        health: Any = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.grpc))
        url = f"http://{server.http}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=server.headers, timeout=20) as answer:
            events = answer.iter_lines()
            next(events)
            next(call)

            server.process.send_signal(signal.SIGTERM)

            assert _wait_for(lambda: server.status("/readyz") == 503, 1)
            assert server.status("/livez") == 200
            serving = health_pb2.HealthCheckResponse.SERVING
            assert health.Check(health_pb2.HealthCheckRequest()).status != serving
            refused = httpx.post(url, json=body, headers=server.headers)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert "retry-after" in refused.headers

            assert [line for line in events if line][-1] == "data: [DONE]"
        assert len(list(call)) == 39
        assert server.process.wait(5) == 0


def test_second_sigterm_ends_at_once(furnished: Furnished, base: BaseModel, tmp_path: Path) -> None:
    body = {"model": "base", "prompt": LONG, "max_tokens": 40, "stream": True}
    url = "/v1/completions"
    with (
        running(furnished, base, tmp_path / "log", drain=20) as server,
        httpx.Client(base_url=f"http://{server.http}", headers=server.headers) as client,
        client.stream("POST", url, json=body) as answer,
    ):
        events = answer.iter_lines()  # kept: letting go of it would close the connection
        next(events)
        server.process.send_signal(signal.SIGTERM)
        assert _wait_for(lambda: server.status("/readyz") == 503, 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(1) == 128 + signal.SIGTERM


def test_grace_time_is_the_longest_a_stop_takes(
    furnished: Furnished, base: BaseModel, tmp_path: Path
) -> None:
    body = {"model": "base", "prompt": LONG * 4, "max_tokens": 200, "stream": True}
    with (
        running(furnished, base, tmp_path / "log", drain=0.2) as server,
        httpx.Client(base_url=f"http://{server.http}", headers=server.headers) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert "data: [DONE]" not in list(lines)
        assert server.process.wait(10) == 0


def test_second_server_on_the_same_home_is_refused_at_once(
    furnished: Furnished, base: BaseModel, tmp_path: Path
) -> None:
    with running(furnished, base, tmp_path / "log", drain=1):
        arguments = [str(furnished.root), str(base.path), str(PACE_SECONDS)]
        second = subprocess.run(
            [sys.executable, str(HERE / "echo_server.py"), *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"LORAGATE_SERVER_HTTP": f"127.0.0.1:{_free_port()}"},
        )
    assert second.returncode != 0
    assert "another server runs on" in second.stderr
