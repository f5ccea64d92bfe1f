"""What vLLM on this machine is asked for: the base model's engine, those of merged models, memory.

Knows CPU from CUDA. vllm itself is imported with the first engine, since that takes seconds.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.adapters.host_memory import free_host_bytes
from loragate.server.concurrency.daemon_threads import in_daemon_thread
from loragate.server.config import Config, ConfigError, EngineConfig
from loragate.server.engine.gpus import Gpus, GpusUnknown
from loragate.server.engine.kv_cache import read_shape, require_fit
from loragate.server.engine.memory import (
    GPU_PROCESS_BYTES,
    PROCESS_BYTES,
    MemoryRequirement,
    weights_bytes,
)
from loragate.server.engine.protocol import Engine
from loragate.server.engine.vllm.forkserver import is_cpu_build
from loragate.server.merged.backend import MergedBackend
from loragate.server.merged.memory import MemoryBudget
from loragate.server.merged.merging import run_merge


def require_fitting(engine: EngineConfig) -> None:
    """Raises ConfigError for settings that the vLLM which is installed can do nothing with."""
    if engine.dtype == "float32" and not is_cpu_build():
        raise ConfigError(
            "engine.dtype is 'float32', and vLLM computes adapters on a GPU in 16 bits only; set "
            "it to 'bfloat16' or 'float16', or to 'auto'."
        )
    if engine.weights == "int8" and not is_cpu_build():
        raise ConfigError(
            "engine.weights is 'int8', which is for a CPU; set it to 'dtype', and on a GPU "
            "engine.quantization."
        )
    if engine.tensor_parallel_size > 1 and is_cpu_build():
        raise ConfigError(
            f"engine.tensor_parallel_size is {engine.tensor_parallel_size}, and the vLLM that is "
            "installed computes on the CPU, where one process has every core; set it to 1."
        )


@asynccontextmanager
async def base_engine(config: Config, base: BaseModel, cache: Path) -> AsyncIterator[Engine]:
    """The base model's, with adapters. Raises ConfigError for a context that cannot fit."""
    if is_cpu_build() and (shape := read_shape(base.path, config.engine.dtype)) is not None:
        require_fit(shape, config.engine.kv_cache_gib, config.engine.max_model_len)
    vllm_engine = await in_daemon_thread(_import_vllm)
    async with vllm_engine.run_engine(config.engine, base, cache) as engine:
        yield engine


def _import_vllm() -> ModuleType:
    """Takes some twenty seconds, in which the event loop has probes to answer."""
    from loragate.server.engine.vllm import engine as vllm_engine

    return vllm_engine


def vllm_merged_backend(config: Config, home: Home, base: BaseModel) -> MergedBackend:
    """Merged models in vLLM; the trainer, if it is installed, makes those that are missing."""

    @asynccontextmanager
    async def start(folder: Path, need: MemoryRequirement) -> AsyncIterator[Engine]:
        vllm_engine = await in_daemon_thread(_import_vllm)
        merged = replace(base, path=folder)
        started = vllm_engine.run_merged_engine(config.engine, merged, home.cache, need)
        async with started as engine:
            yield engine

    url = config.registry.url or home.database_url
    return MergedBackend(
        start,
        partial(
            run_merge,
            base=config.engine.model,
            dtype=config.engine.dtype,
            # What the trainer reads, and cannot know of flags.
            environment={
                "LORAGATE_HOME": str(home.root),
                "LORAGATE_REGISTRY_URL": url,
                "LORAGATE_ENGINE_CHAT_TEMPLATE": config.engine.chat_template,
            },
            timeout_seconds=config.merged.merge_timeout_seconds,
        ),
        free_host_bytes if is_cpu_build() else partial(_free_gpu_bytes, config.engine),
    )


def _free_gpu_bytes(engine: EngineConfig) -> int:
    return Gpus.from_driver().memory(engine.tensor_parallel_size).free_bytes


def merged_budget(config: Config, base: BaseModel) -> MemoryBudget:
    """What merged models may take here; reads the headers of the base model's weights."""
    is_cpu = is_cpu_build()
    return MemoryBudget(
        kv_cache_bytes=int(config.merged.kv_cache_gib * 2**30),
        reserve_bytes=int(config.merged.reserve_gib * 2**30),
        dtype=config.engine.dtype,
        base_need=_need_on_cpu(config.engine, base) if is_cpu else _need_on_gpu(config.engine),
        # The base model in float32, its sum with the adapter, and what was written, loaded again.
        merging_bytes=3 * weights_bytes(base.path, "float32"),
        # Each GPU has a process of its own.
        process_bytes=PROCESS_BYTES
        if is_cpu
        else config.engine.tensor_parallel_size * GPU_PROCESS_BYTES,
        is_gpu=not is_cpu,
    )


def _need_on_cpu(engine: EngineConfig, base: BaseModel) -> MemoryRequirement:
    return MemoryRequirement(
        weights_bytes(base.path, engine.dtype), int(engine.kv_cache_gib * 2**30)
    )


def _need_on_gpu(engine: EngineConfig) -> MemoryRequirement:
    """The share of the GPU that vLLM takes for all together; nothing where it cannot be measured,
    which is told when a merged model is to start.
    """
    try:
        total = Gpus.from_driver().memory(engine.tensor_parallel_size).total_bytes
    except GpusUnknown:
        total = 0
    return MemoryRequirement(0, int(engine.gpu_memory_utilization * total), 0)
