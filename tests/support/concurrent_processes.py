"""Processes that do a thing at the same moment."""

import subprocess
import sys
from collections.abc import Sequence


def run_together(program: str, *arguments: Sequence[str]) -> list[str]:
    """Runs the program once with each list of arguments, and returns what each wrote after `ready`.

    It is to print `ready`, and to begin once a line comes in: so none waits for another's imports.
    All are to end well, and to say nothing on standard error.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *each],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for each in arguments
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    written: list[str] = []
    for process in processes:
        out, problems = process.communicate(timeout=60)
        assert (process.returncode, problems) == (0, ""), problems
        written.append(out)
    return written
