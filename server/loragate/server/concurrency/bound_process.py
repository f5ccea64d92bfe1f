"""Runs a Python module in a process that ends when its parent does, with all that it has started.

As a program, `python -m loragate.server.concurrency.bound_process MODULE ARGUMENT…`. Its parent
holds the other end of its standard input and writes nothing: the end of that is the end of the
parent, however it came. The process has to lead a process group, which is killed as a whole.
"""

import os
import runpy
import select
import signal
import sys
import threading

_STDIN = 0
_LOOK_SECONDS = 1.0


def bind() -> None:
    """From now on this process and its group end with its parent."""
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    # A process that was forked from the parent may hold the pipe open beyond the parent's end.
    while os.getppid() == parent:
        is_told, _, _ = select.select([_STDIN], [], [], _LOOK_SECONDS)
        if is_told and not os.read(_STDIN, 1024):
            break
    if os.getpgrp() == os.getpid():  # else the group is somebody else's
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    module, *arguments = sys.argv[1:]
    bind()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
