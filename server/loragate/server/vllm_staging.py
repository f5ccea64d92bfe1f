"""Loads adapters inside vLLM's worker, beside its steps instead of between them.

vLLM's own `add_lora` reads and converts an adapter in the engine's loop: every stream of every
tenant waits meanwhile, for some fifty milliseconds. Here a thread reads what the server has
converted before, a little at a time, and the loop only copies the tensors into a slot. vLLM mixes
`AdapterStaging` into its worker (`worker_extension_cls`).
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from loragate.adapters.adapter_files import WEIGHTS
from loragate.adapters.safetensors_header import read_data_start, read_header
from loragate.server.lora_cast import DTYPES
from loragate.server.pace import Pace

if TYPE_CHECKING:
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class AdapterStaging:
    """What the worker can do besides; each method is called through `collective_rpc`."""

    if TYPE_CHECKING:
        model_runner: GPUModelRunner

    def stage_adapter(self, name: str, lora_id: int, path: str) -> None:
        """Begins to read the adapter in the folder; returns at once. One at a time."""
        # A copy for the thread: should the loop load an adapter meanwhile, it does as ever.
        manager = copy(self.model_runner.lora_manager)
        manager._lora_model_cls = StagedLoRAModel
        request = LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=path)
        self._staged: Future[LoRAModel] = Future()
        threading.Thread(
            target=_stage, args=(manager, request, self._staged), name=f"stage {name}", daemon=True
        ).start()

    def add_staged_adapter(self, name: str, lora_id: int, path: str) -> bool:
        """Puts the adapter into a slot if it is ready; False says to ask again. `path` is where its
        artifact lies, for good.

        Raises what the thread met: the adapter cannot be read, or does not fit.
        """
        staged = self._staged
        if not staged.done():
            return False
        adapter = staged.result()
        manager = self.model_runner.lora_manager
        load = manager._load_adapter
        manager._load_adapter = lambda lora_request: adapter  # vLLM keeps its books
        try:
            manager.add_adapter(LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=path))
        finally:
            manager._load_adapter = load
            del self._staged
        return True


def _stage(
    manager: "LRUCacheWorkerLoRAManager", request: LoRARequest, staged: "Future[LoRAModel]"
) -> None:
    try:
        adapter = manager._load_adapter(request)
        # Done again when it is added, but then there is nothing left to merge.
        manager._adapter_manager._create_merged_loras_inplace(adapter)
    except BaseException as error:  # noqa: BLE001 - for whoever asks for the result
        staged.set_exception(error)
    else:
        staged.set_result(adapter)


class StagedLoRAModel(LoRAModel):
    """vLLM's adapter in memory, of a file in which every tensor has the engine's dtype."""

    @classmethod
    def from_local_checkpoint(
        cls,
        lora_dir: str,
        expected_lora_modules: set[str],
        peft_helper: PEFTHelper,
        *,
        moe_ep_spec: object = None,
        tensorizer_config_dict: object = None,  # of vLLM 0.26
        **options: Any,  # goes on to vLLM as it came
    ) -> LoRAModel:
        """As vLLM's; that modules exist is not checked again, since the gate has."""
        tensors = _Tensors(Path(lora_dir) / WEIGHTS)
        return cls.from_lora_tensors(
            tensors=cast(dict[str, torch.Tensor], tensors),  # which it walks through once
            peft_helper=peft_helper,
            **options,
        )


class _Tensors:
    """A file's tensors: views of one piece of memory, into which the file is read at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        pace = Pace(lambda: True)
        header = read_header(self._path)
        [dtype] = {DTYPES[tensor.dtype] for tensor in header.values()}
        with self._path.open("rb") as file:
            file.seek(read_data_start(file))
            content = torch.from_numpy(np.fromfile(file, np.uint8)).view(dtype)
        for name, tensor in header.items():
            strides = [1]
            for size in tensor.shape[:0:-1]:
                strides.insert(0, strides[0] * size)
            # One call of torch for each: with every call, Python's lock goes to and fro between
            # this thread and the engine's loop.
            yield name, content.as_strided(tensor.shape, strides, tensor.begin // dtype.itemsize)
            pace.rest()
