"""The evaluation's server ends with whoever started it, also where that was killed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil

from support.waiting import wait_for

STARTS_ONE = """
    import os, subprocess, time
    from functools import partial
    from pathlib import Path
    from loragate.trainer.evaluation.served import _LIBC, _end_with

    child = subprocess.Popen(
        ["sleep", "600"], start_new_session=True, preexec_fn=partial(_end_with, os.getpid(), _LIBC)
    )
    Path("child").write_text(str(child.pid))
    time.sleep(600)
"""


def test_server_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STARTS_ONE)]
    pid = tmp_path / "child"
    with subprocess.Popen(command, cwd=tmp_path) as parent:
        assert wait_for(lambda: pid.is_file() and bool(pid.read_text()), 60)
        child = psutil.Process(int(pid.read_text()))
        os.kill(parent.pid, signal.SIGKILL)
    assert wait_for(lambda: not child.is_running() or child.status() == "zombie", 10)
