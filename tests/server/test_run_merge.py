"""The process that makes a merged model ends with whoever wanted it, and takes its own along."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import uvloop

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import AdapterVersion
from loragate.server.merged.merging import run_bound, run_merge
from support.waiting import wait_for

ENDLESS = """
import os, subprocess, sys
from pathlib import Path

helper = subprocess.Popen(["sleep", "600"])
draft = Path(sys.argv[1] + ".draft")
draft.write_text(f"{os.getpid()} {helper.pid}")
draft.rename(sys.argv[1])
helper.wait()
"""
SERVER = """
import asyncio, sys

from loragate.server.merged.merging import run_bound

asyncio.run(run_bound("endless", sys.argv[2:], {"PYTHONPATH": sys.argv[1]}))
"""
VERSION = AdapterVersion("acme", "support", 3, "d" * 64, 3)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Python finds a module that runs on, and all else."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "failing.py").write_text(
        "import sys\nprint('x' * 100_000, file=sys.stderr)\nsys.exit('there is no such version')\n"
    )
    return ":".join((str(tmp_path), *filter(None, sys.path)))


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may be left to reap it
    except psutil.NoSuchProcess:
        return True


def pids_in(file: Path) -> list[int]:
    assert wait_for(file.exists, 20)
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_process_and_what_it_started_end_when_the_work_is_cancelled(
    tmp_path: Path, path: str, run
) -> None:
    pids = tmp_path / "pids"

    async def cancel() -> None:
        making = asyncio.create_task(run_bound("endless", [str(pids)], {"PYTHONPATH": path}))
        await asyncio.to_thread(pids_in, pids)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    run(cancel())

    assert wait_for(lambda: all(map(has_ended, pids_in(pids))), 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_process_and_what_it_started_end_when_the_server_is_killed(
    tmp_path: Path, path: str, number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, path, str(pids)], env={"PYTHONPATH": path}
    )
    found = pids_in(pids)

    server.send_signal(number)  # nothing catches SIGTERM here: it ends as abruptly
    server.wait(10)

    assert wait_for(lambda: all(map(has_ended, found)), 5)


async def test_last_words_of_a_process_that_fails_are_told_and_no_more(path: str) -> None:
    status, words = await run_bound("failing", [], {"PYTHONPATH": path})

    assert status == 1
    assert words.endswith("there is no such version")
    assert len(words) == 500


async def test_merge_that_takes_too_long_is_ended_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoragateError, match=r"took more than 0\.05 s.*merged\.merge_timeout"):
        await run_merge(
            VERSION,
            base="tiny",
            dtype="auto",
            environment={"LORAGATE_HOME": str(tmp_path)},
            timeout_seconds=0.05,
        )
