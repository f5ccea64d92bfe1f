"""A core that cannot start says why, in a sentence, to whoever starts it."""

import logging
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from loragate.server.engine.vllm.forkserver import (
    CoreContext,
    EngineNotStarted,
    lack_of_memory,
    saying_why,
)

TOO_LITTLE = "No available memory for the cache blocks. Try\n increasing `gpu_memory_utilization`."


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the core writes to standard error."""
    return tmp_path / "log"


def start(core: Callable[[], None], log: Path, expected_exit: int) -> None:
    """As vLLM does: the process is made deep inside, and its end is told by a RuntimeError."""
    process = CoreContext().Process(target=_logged, name="core", kwargs={"core": core, "log": log})
    process.start()
    process.join(60)
    assert process.exitcode == expected_exit
    raise RuntimeError(
        "Engine core initialization failed. See root cause above. "
        f"Failed core proc(s): {{'EngineCore': {process.exitcode}}}"
    )


def _logged(core: Callable[[], None], log: Path) -> None:
    with log.open("wb") as output:
        os.dup2(output.fileno(), 2)
    core()


def without_memory() -> None:
    try:
        raise ValueError(TOO_LITTLE)
    except ValueError:
        logging.getLogger("vllm.v1.engine.core").exception("EngineCore failed to start.")
        raise


def with_a_fault() -> None:
    raise ValueError("too many values to unpack")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_lack_of_memory_is_told_in_one_sentence_without_a_traceback(
    forks: ForkServerContext, log: Path
) -> None:
    with pytest.raises(EngineNotStarted) as told, saying_why():
        start(without_memory, log, 1)
    assert str(told.value).startswith(
        "The engine did not start: No available memory for the cache blocks. Try increasing"
    )
    assert "engine.kv_cache_gib" in str(told.value)
    assert log.read_text() == ""


def test_any_other_fault_keeps_its_traceback(forks: ForkServerContext, log: Path) -> None:
    with pytest.raises(EngineNotStarted, match="the log above says why"), saying_why():
        start(with_a_fault, log, 1)
    assert "too many values to unpack" in log.read_text()


def test_a_core_that_the_system_killed_is_said_to_have_been(
    forks: ForkServerContext, log: Path
) -> None:
    with pytest.raises(EngineNotStarted, match="which the system does when memory"), saying_why():
        start(killed, log, -9)


def test_what_is_no_failed_start_passes_as_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), saying_why():
        raise RuntimeError("something else")


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ValueError("Free memory on device cuda:0 (3/24 GiB) on startup is less than desired"),
        ValueError("To serve at least one request with the model's max seq len (40960), KV cache "
                   "is needed, which is larger than the available KV cache memory"),
    ],
)  # fmt: skip
def test_what_vllm_and_torch_say_of_too_little_memory_is_known(error: Exception) -> None:
    assert lack_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("bad"), RuntimeError("memory"), KeyError("memory")])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert lack_of_memory(error) is None
