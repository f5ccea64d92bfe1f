"""What vLLM on this machine is asked for: the base model's engine, those of merged models, memory.

Knows CPU from CUDA. vllm itself is imported with the first engine, since that takes seconds.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from loragate.adapters.base_model import BaseModel
from loragate.adapters.home import Home
from loragate.server.config import Config
from loragate.server.engine import Engine
from loragate.server.memory import (
    GPU_PROCESS_BYTES,
    PROCESS_BYTES,
    Need,
    free_gpu_bytes,
    free_host_bytes,
    weights_bytes,
)
from loragate.server.merged_models import Budget, Workshop
from loragate.server.merging import run_merge
from loragate.server.vllm_start import is_cpu_build


def base_engine(
    config: Config, base: BaseModel, cache: Path
) -> AbstractAsyncContextManager[Engine]:
    """The base model's, with adapters."""
    from loragate.server import vllm_engine

    return vllm_engine.run_engine(config.engine, base, cache)


def merged_workshop(config: Config, home: Home, base: BaseModel) -> Workshop:
    """Merged models in vLLM; the trainer, if it is installed, makes those that are missing."""

    def start(folder: Path, need: Need) -> AbstractAsyncContextManager[Engine]:
        from loragate.server import vllm_engine

        merged = replace(base, path=folder)
        return vllm_engine.run_merged_engine(config.engine, merged, home.cache, need)

    url = config.registry.url or home.database_url
    return Workshop(
        start,
        partial(
            run_merge,
            base=config.engine.model,
            dtype=config.engine.dtype,
            environment={"LORAGATE_HOME": str(home.root), "LORAGATE_REGISTRY_URL": url},
            timeout_seconds=config.merged.merge_timeout_seconds,
        ),
        free_host_bytes if is_cpu_build() else free_gpu_bytes,
    )


def merged_budget(config: Config, base: BaseModel) -> Budget:
    """What merged models may take here; reads the headers of the base model's weights."""
    is_cpu = is_cpu_build()
    base_kv = int(config.engine.kv_cache_gib * 2**30)
    return Budget(
        kv_cache_bytes=int(config.merged.kv_cache_gib * 2**30),
        reserve_bytes=int(config.merged.reserve_gib * 2**30),
        dtype=config.engine.dtype,
        base_need=Need(weights_bytes(base.path, config.engine.dtype), base_kv)
        if is_cpu
        else Need(0, 0, 0),
        # The base model in float32, its sum with the adapter, and what was written, loaded again.
        merging_bytes=3 * weights_bytes(base.path, "float32") if is_cpu else 0,
        process_bytes=PROCESS_BYTES if is_cpu else GPU_PROCESS_BYTES,
    )
