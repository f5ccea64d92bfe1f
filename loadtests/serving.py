"""A server of this run's own: `loragate serve`, or a stand-in, in a scratch home."""

import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from loadtests.ports import free_port
from loadtests.preparing import Reached

_START_SECONDS = 600.0
_EXIT_SECONDS = 60.0
SERVE = f"{shlex.quote(sys.executable)} -m loragate.server.cli.main serve"


class ServerFailed(Exception):
    """The server did not come up, or ended with another code than 0."""


@contextmanager
def serving(command: str, settings: Mapping[str, str], log: Path) -> Iterator[Reached]:
    """Starts the command, waits until it is ready, and stops it in the end.

    `{home}` in the command is the scratch home; prepared models are linked into it. Settings are
    `SECTION_KEY`, as in the environment but without the prefix; what the environment has goes
    before. Raises ServerFailed.
    """
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    admin_key = secrets.token_urlsafe(24)
    wanted = {f"LORAGATE_{name}": value for name, value in settings.items()}
    given = {name: value for name, value in os.environ.items() if name.startswith("LORAGATE_")}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        home = Path(scratch)
        _link_models(home)
        environment = {
            **os.environ,
            **wanted,
            **given,
            "LORAGATE_HOME": str(home),
            "LORAGATE_ADMIN_KEY": admin_key,
            "LORAGATE_SERVER_HTTP": http,
            "LORAGATE_SERVER_GRPC": grpc,
        }
        arguments = shlex.split(command.replace("{home}", str(home)))
        with log.open("wb") as output:
            # Ctrl-C ends the run; the server is stopped by this process, after its last answer.
            process = subprocess.Popen(
                arguments, env=environment, stdout=output, stderr=output, process_group=0
            )
        try:
            _wait_until_ready(process, http, log)
            shown = {
                name: value for name, value in {**wanted, **given}.items() if _is_setting(name)
            }
            yield Reached(f"http://{http}", grpc, admin_key, process.pid, shown)
        finally:
            code = _stop(process)
    if code != 0:
        raise ServerFailed(f"The server ended with code {code}:\n{_tail(log)}")


def _link_models(home: Path) -> None:
    own = Path(os.environ.get("LORAGATE_HOME") or Path.home() / ".loragate") / "models"
    if own.is_dir():
        (home / "models").symlink_to(own.absolute())


def _wait_until_ready(process: subprocess.Popen[bytes], http: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"The server ended while it started:\n{_tail(log)}")
        try:
            if httpx.get(f"http://{http}/readyz", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise ServerFailed(f"The server was not ready after {_START_SECONDS:.0f} s:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _is_setting(name: str) -> bool:
    return name not in ("LORAGATE_HOME", "LORAGATE_ADMIN_KEY", "LORAGATE_API_KEY", "LORAGATE_URL")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-4000:]
