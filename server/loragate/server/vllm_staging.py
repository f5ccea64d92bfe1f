"""Loads adapters inside vLLM's worker, beside its steps instead of between them.

vLLM's own `add_lora` reads and converts an adapter in the engine's loop: every stream of every
tenant waits meanwhile, for some fifty milliseconds. Here a thread does that, a little at a time,
and the loop only copies the finished tensors into a slot. vLLM mixes `AdapterStaging` into its
worker (`worker_extension_cls`).
"""

import mmap
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from loragate.adapters.adapter_files import WEIGHTS
from loragate.adapters.safetensors_header import Tensor, read_data_start, read_header

if TYPE_CHECKING:
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

# A thread that computes takes a core from the engine's, and Python's lock from its loop. In pieces
# this small, the steps meanwhile are a few percent slower, and no single one stands out.
_WORK_SECONDS, _PAUSE_SECONDS = 0.0005, 0.002
_NICENESS = 10
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class AdapterStaging:
    """What the worker can do besides; each method is called through `collective_rpc`."""

    if TYPE_CHECKING:
        model_runner: GPUModelRunner

    def stage_adapter(self, name: str, lora_id: int, path: str) -> None:
        """Begins to read and convert the adapter; returns at once. One at a time."""
        manager = self.model_runner.lora_manager
        manager._lora_model_cls = PacedLoRAModel
        request = LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=path)
        staged: Future[LoRAModel] = Future()
        self._staging = request, staged
        threading.Thread(
            target=_stage, args=(manager, request, staged), name=f"stage {name}", daemon=True
        ).start()

    def add_staged_adapter(self, lora_id: int) -> bool:
        """Puts the adapter into a slot if it is ready; False says to ask again.

        Raises what the thread met: the adapter cannot be read, or does not fit.
        """
        request, staged = self._staging
        assert request.lora_int_id == lora_id
        if not staged.done():
            return False
        adapter = staged.result()
        manager = self.model_runner.lora_manager
        load = manager._load_adapter
        manager._load_adapter = lambda lora_request: adapter  # vLLM keeps its books
        try:
            manager.add_adapter(request)
        finally:
            manager._load_adapter = load
            del self._staging
        return True


def _stage(
    manager: "LRUCacheWorkerLoRAManager", request: LoRARequest, staged: "Future[LoRAModel]"
) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    try:
        adapter = manager._load_adapter(request)
        # Done again when it is added, but then there is nothing left to merge.
        manager._adapter_manager._create_merged_loras_inplace(adapter)
    except BaseException as error:  # noqa: BLE001 - for whoever asks for the result
        staged.set_exception(error)
    else:
        staged.set_result(adapter)


class PacedLoRAModel(LoRAModel):
    """vLLM's adapter in memory, read with pauses where a thread does it."""

    @classmethod
    def from_local_checkpoint(
        cls,
        lora_dir: str,
        expected_lora_modules: set[str],
        peft_helper: PEFTHelper,
        *,
        dtype: torch.dtype | None = None,
        moe_ep_spec: object = None,
        tensorizer_config_dict: object = None,  # of vLLM 0.26
        **options: Any,  # goes on to vLLM as it came
    ) -> LoRAModel:
        """As vLLM's; that modules exist is not checked again, since the gate has."""
        is_beside_steps = threading.current_thread() is not threading.main_thread()
        tensors = _Tensors(Path(lora_dir) / WEIGHTS, dtype or torch.float32, is_beside_steps)
        return cls.from_lora_tensors(
            tensors=cast(dict[str, torch.Tensor], tensors),  # which it walks through once
            peft_helper=peft_helper,
            dtype=dtype,
            **options,
        )


class _Tensors:
    """A file's tensors, converted one by one while they are walked through."""

    def __init__(self, path: Path, dtype: torch.dtype, is_paced: bool) -> None:
        self._path, self._dtype, self._is_paced = path, dtype, is_paced

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        header = read_header(self._path)
        with (
            self._path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as content,
        ):
            start = read_data_start(file)
            busy_since = time.perf_counter()
            for name, described in header.items():
                yield name, self._read(content, start, described)
                if self._is_paced and time.perf_counter() - busy_since > _WORK_SECONDS:
                    time.sleep(_PAUSE_SECONDS)
                    busy_since = time.perf_counter()

    def _read(self, content: mmap.mmap, start: int, described: Tensor) -> torch.Tensor:
        dtype = _DTYPES[described.dtype]
        count = (described.end - described.begin) // dtype.itemsize
        flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start + described.begin)
        return flat.to(self._dtype, copy=True).reshape(described.shape)
