"""The engine core's process: ended with a start that is given up, and with its server."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine import utils as vllm_engine_utils

from loragate.adapters.base_models.preparation import BaseModel
from loragate.server.config import EngineConfig
from loragate.server.engine.memory import MemoryRequirement
from loragate.server.engine.vllm import engine as vllm_engine
from loragate.server.engine.vllm.forkserver import CUDA_ENVIRONMENT, ENVIRONMENT
from support.waiting import until, wait_for


def wait_for_ever() -> None:
    threading.Event().wait()


class StartingLLM:
    """Waits for its core as vLLM does: for as long as the process lives."""

    cores: list[int]

    @classmethod
    def make(cls, args: object) -> object:
        core = vars(vllm_engine_utils)["get_mp_context"]().Process(
            target=wait_for_ever, name="core", kwargs={}
        )
        core.start()
        cls.cores.append(core.pid)
        core.join()
        raise RuntimeError("Engine core initialization failed.")


@pytest.fixture
def starting_llm(monkeypatch: pytest.MonkeyPatch) -> type[StartingLLM]:
    monkeypatch.setattr(StartingLLM, "cores", [], raising=False)
    monkeypatch.setattr(vllm_engine, "_make", StartingLLM.make)
    return StartingLLM


async def test_start_that_is_cancelled_ends_its_core_and_stays_cancelled(
    starting_llm: type[StartingLLM],
) -> None:
    start = asyncio.create_task(vllm_engine._start(AsyncEngineArgs()))
    await until(lambda: bool(starting_llm.cores), 30)
    [core] = starting_llm.cores
    start.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await start
    assert not psutil.pid_exists(core) or psutil.Process(core).status() == psutil.STATUS_ZOMBIE


SERVER = """
import multiprocessing, threading
from loragate.server.engine.vllm import forkserver

def wait_for_ever():
    print("core", flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    forkserver.is_cpu_build = lambda: IS_CPU
    core = forkserver.CoreContext().Process(target=wait_for_ever, name="core", kwargs={})
    core.start()
    print(core.pid, flush=True)
    core.join()
"""


@pytest.mark.parametrize("is_cpu", [True, False], ids=["forked, as on CPU", "spawned, as on CUDA"])
def test_killed_server_leaves_no_core_even_while_that_starts(is_cpu: bool, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER.replace("IS_CPU", str(is_cpu)))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = {server.stdout.readline().strip() for _ in range(2)}
        [core] = [int(line) for line in said - {"core"}]
        assert psutil.pid_exists(core)
        server.kill()
    assert wait_for(lambda: not psutil.pid_exists(core), 20)


def test_vllm_reads_the_variables_that_are_set_for_it() -> None:
    names = {name for name in ENVIRONMENT | CUDA_ENVIRONMENT if name.startswith("VLLM_")}
    assert names <= envs.environment_variables.keys()


def test_merged_models_cache_is_divided_among_the_gpus(tmp_path: Path) -> None:
    """vLLM's setting is of each GPU."""
    config = EngineConfig(tensor_parallel_size=2)
    need = MemoryRequirement(weights_bytes=0, kv_cache_bytes=2**30)
    args = vllm_engine._merged_args(config, BaseModel("merged", tmp_path, "sha256:0"), need)
    assert args.kv_cache_memory_bytes == 2**29
