"""Watches both sides of a run: what the server says of itself, and whether this client keeps up."""

import time

import gevent
import psutil
from geventhttpclient.response import HTTPParseError

from loadtests.actions import Admin, AdminFailed
from loadtests.current import CurrentRun
from loadtests.records import ClientTick, ServerTick

_LAG_SECONDS = 0.02
_TICK_SECONDS = 1.0
_WATCHED = (
    "loragate_requests_running",
    "loragate_requests_queued",
    "loragate_adapter_load_seconds_count",
)


def watch_client(run: CurrentRun) -> None:
    """Sleeps short times and writes down how much longer they took, and the CPU time used."""
    while True:
        began, cpu, lags = time.perf_counter(), time.process_time(), []
        while time.perf_counter() - began < _TICK_SECONDS:
            asleep = time.perf_counter()
            gevent.sleep(_LAG_SECONDS)
            lags.append(round(time.perf_counter() - asleep - _LAG_SECONDS, 6))
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        run.recorder.write(ClientTick(run.now, lags, round(share, 3)))


def watch_server(run: CurrentRun) -> None:
    """Reads the server's metrics once a second, while it answers."""
    admin = Admin(run.options.target.http, run.options.target.admin_key)
    while True:
        try:
            values = _values(admin.metrics())
        except (OSError, HTTPParseError, AdminFailed):
            values = None
        run.server_is_busy = values is not None and values[0] + values[1] > 0
        if values is not None:
            rss = _rss_bytes(run.options.target.server_pid)
            run.recorder.write(ServerTick(run.now, *values, rss))
        gevent.sleep(_TICK_SECONDS)


def _values(text: str) -> tuple[float, float, float]:
    # Only the lines that are needed: to parse them all would hold up the clock of the streams.
    found = dict.fromkeys(_WATCHED, 0.0)
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name in found:
            found[name] = float(value)
    running, queued, loads = found.values()
    return running, queued, loads


def _rss_bytes(pid: int | None) -> int | None:
    """Of the process and all that it started."""
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return None
