"""Servers as processes of their own, to be signalled and killed.

They are forked from a process that has imported everything: that takes seconds, a fork none.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import httpx

from loadtests.ports import free_port
from support.waiting import wait_for

_START_SECONDS = 120  # the first one waits for the imports, on a machine that may be busy


def forks_of(*modules: str) -> ForkServerContext:
    """Starts processes in which these modules, installed ones, are imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


@dataclass(frozen=True)
class ServerProcess:
    """A server under way, on ports of its own."""

    process: ForkServerProcess
    http: str
    grpc: str
    log: Path

    def status(self, path: str) -> int:
        return httpx.get(f"http://{self.http}{path}").status_code

    def ended(self, seconds: float) -> int | None:
        """How the process ended, a signal as a negative number; None if it has not by then."""
        self.process.join(seconds)
        return self.process.exitcode


@contextmanager
def launched(
    forks: ForkServerContext,
    serve: Callable[..., None],
    *arguments: object,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Calls `serve` in a process, and kills that if it still runs at the end of the block."""
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    variables = {"LORAGATE_SERVER_HTTP": http, "LORAGATE_SERVER_GRPC": grpc, **(environment or {})}
    process = forks.Process(target=_run, args=(serve, arguments, variables, log))
    process.start()
    try:
        yield ServerProcess(process, http, grpc, log)
    finally:
        process.kill()
        process.join()


@contextmanager
def started(
    forks: ForkServerContext,
    serve: Callable[..., None],
    *arguments: object,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Lends the server once it is ready."""
    with launched(forks, serve, *arguments, log=log, environment=environment) as server:
        assert wait_for(lambda: _is_ready(server), _START_SECONDS), log.read_text()
        assert server.process.is_alive(), log.read_text()
        yield server


def _run(
    serve: Callable[..., None],
    arguments: tuple[object, ...],
    environment: Mapping[str, str],
    log: Path,
) -> None:
    with log.open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ |= environment
    serve(*arguments)


def _is_ready(server: ServerProcess) -> bool:
    if server.process.exitcode is not None:
        return True  # it never will be; the caller looks
    try:
        return httpx.get(f"http://{server.http}/readyz").is_success
    except httpx.TransportError:
        return False
