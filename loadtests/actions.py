"""What happens to the server while it is asked: aliases move, or it is told to stop."""

import os
import signal
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import gevent
import msgspec
import psutil
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from loadtests.current import STOP, CurrentRun
from loadtests.records import Stop, Swap

_TIMEOUT_SECONDS = 10.0
_POLL_SECONDS = 0.1
_SWAP_SECONDS = 60.0  # until an alias has to have moved
_STOP_SECONDS = 120.0


class _Page(msgspec.Struct):
    serving: dict[str, str] = {}


class AdminFailed(Exception):
    """The administration refused or could not be reached."""


class Admin:
    """The little of the public administration API that is needed under load."""

    def __init__(self, url: str, key: str) -> None:
        self._client = HTTPClient.from_url(
            url, connection_timeout=_TIMEOUT_SECONDS, network_timeout=_TIMEOUT_SECONDS
        )
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def promote(self, adapter: str, version: str) -> None:
        body = msgspec.json.encode({"version": version, "reason": "load test"})
        self._ask("PUT", f"{_path(adapter)}/aliases/champion", body)

    def champion(self, adapter: str) -> str:
        page = msgspec.json.decode(self._ask("GET", _path(adapter)), type=_Page)
        return page.serving.get("champion", "")

    def metrics(self) -> str:
        return self._ask("GET", "/metrics").decode()

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        response = self._client.request(method, path, body=body, headers=self._headers)
        answer = bytes(response.read())
        if response.status_code >= 300:
            raise AdminFailed(f"{method} {path}: {response.status_code} {answer.decode()}")
        return answer


def swap_adapters(run: CurrentRun) -> None:
    """Moves each adapter's champion in turn to its next version, until the plan is over."""
    admin = Admin(run.options.target.http, run.options.target.admin_key)
    every = run.options.scenario.swap_every_seconds
    adapters = [
        (f"{tenant.name}/{adapter.name}", adapter.versions)
        for tenant in run.options.target.tenants
        for adapter in tenant.adapters
    ]
    turn = 0
    while (turn + 1) * every < run.plan.seconds:
        name, versions = adapters[turn % len(adapters)]
        gevent.sleep(max(0.0, (turn + 1) * every - run.now))
        serving = admin.champion(name)
        version = versions[(versions.index(serving) + 1) % len(versions)]
        asked = run.now
        admin.promote(name, version)
        moved = _wait_for(lambda: admin.champion(name) == version, _SWAP_SECONDS)  # noqa: B023
        run.recorder.write(Swap(name, version, asked, run.now if moved else None))
        turn += 1


def stop_server(run: CurrentRun) -> None:
    """Sends SIGTERM as the second phase begins, then asks the probes until the process is gone."""
    pid = run.options.target.server_pid
    if pid is None:
        raise AdminFailed("Only a server that the suite started itself can be stopped by it.")
    gevent.sleep(max(0.0, run.plan.phases[1].starts - run.now))
    os.kill(pid, signal.SIGTERM)
    at = run.now
    ready: list[tuple[float, int]] = []
    live: list[tuple[float, int]] = []

    def is_gone() -> bool:
        for path, statuses in (("/readyz", ready), ("/livez", live)):
            if (status := _probe(run.options.target.http, path)) is not None:
                statuses.append((run.now, status))
        return not _is_running(pid)

    has_exited = _wait_for(is_gone, _STOP_SECONDS)
    run.recorder.write(Stop(at, run.now if has_exited else None, ready, live))
    run.finish(STOP)


def _wait_for(claim: Callable[[], bool], seconds: float) -> bool:
    deadline = time.perf_counter() + seconds
    while not claim():
        if time.perf_counter() > deadline:
            return False
        gevent.sleep(_POLL_SECONDS)
    return True


def _probe(url: str, path: str) -> int | None:
    client = HTTPClient(
        urlsplit(url).hostname or "",
        urlsplit(url).port,
        connection_timeout=1.0,
        network_timeout=1.0,
    )
    try:
        return client.get(path).status_code
    except (OSError, HTTPParseError):
        return None
    finally:
        client.close()


def _is_running(pid: int) -> bool:
    """False for a process that has ended and waits for its parent, which is not this process."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _path(adapter: str) -> str:
    tenant, name = adapter.split("/")
    return f"/admin/v1/tenants/{tenant}/adapters/{name}"
