"""A server for as long as a comparison takes, on loopback ports that are free."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from loragate.adapters.home import Home
from loragate.server.comparison.asking import ComparisonFailed

_START_SECONDS = 300.0
_LOOK_AGAIN_SECONDS = 0.2


@contextmanager
def own_server(home: Home) -> Iterator[str]:
    """Its URL, once it is ready. Raises ComparisonFailed, where another one runs too."""
    log = home.ensure().root / "compare.log"
    http, grpc = (f"127.0.0.1:{_free_port()}" for _ in range(2))
    ports = {"LORAGATE_SERVER_HTTP": http, "LORAGATE_SERVER_GRPC": grpc}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "loragate.server.cli.main", "serve"],
            env={**os.environ, **ports},
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the comparison, which then ends the server
        )
        try:
            _wait(server, f"http://{http}", log)
            yield f"http://{http}"
        finally:
            server.terminate()
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ComparisonFailed(
                f"no server could be started ({log} says why); if one runs, name it with --url"
            )
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(_LOOK_AGAIN_SECONDS)
    raise ComparisonFailed(f"the server was not ready in {_START_SECONDS:g} s; see {log}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
