"""Runs vLLM's worker inside the engine-core process. Imported there by vLLM, by class.

On CPU vLLM overrules the executor named "uni" and starts a second process for its one worker; the
two then poll each other over shared memory and the worker gets one core less. An executor *class*
is not overruled, and one process with every core is all that a single CPU worker needs.
"""

import ctypes
import logging
import os
from pathlib import Path
from weakref import WeakKeyDictionary

from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from loragate.server.engine.cpu import decoder_layer, elementwise, linear, native_library
from loragate.server.engine.cpu.huge_pages import HugePages
from loragate.server.engine.cpu.lora_kernel import LoraKernel
from loragate.server.engine.cpu.punica_wrapper import GroupedPunicaWrapper, lay_out_for_reading
from loragate.server.engine.cpu.scheduler import throttling_probes

# Keys in vLLM's `additional_config`: the kernels' path, and whether weights are to be rounded.
KERNELS, INT8 = "kernels", "int8"
_WRAPPER = f"{GroupedPunicaWrapper.__module__}.{GroupedPunicaWrapper.__qualname__}"


class InCoreExecutor(UniProcExecutor):
    """vLLM's single-process executor under a name that the CPU platform leaves alone."""

    def _init_executor(self) -> None:
        # The platform names the class that computes LoRA; this process serves nobody but us.
        current_platform.get_punica_wrapper = lambda: _WRAPPER
        # Only a compiler needs attention as an operator of torch, which costs 20 us a layer.
        current_platform.opaque_attention_op = lambda: False
        options = self.vllm_config.additional_config
        library, multiplies = None, False
        memory = HugePages()
        if isinstance(options, dict) and KERNELS in options:
            library = native_library.load(Path(options[KERNELS]))
            GroupedPunicaWrapper.kernel = LoraKernel(library)
            elementwise.register(library)
            # oneDNN has no weights of eight bits, however fast it is in bfloat16.
            multiplies = linear.is_worth_it() or INT8 in options
            if multiplies:
                linear.register(library, memory)
        self._ranks = WeakKeyDictionary[LoRAModel, int]()  # what has left the engine is forgotten
        GroupedPunicaWrapper.rank_of = self._rank_of
        scheduling = self.vllm_config.scheduler_config  # vLLM makes its scheduler after this
        scheduling.scheduler_cls = throttling_probes(scheduling.get_scheduler_cls())
        super()._init_executor()
        self._lay_out_adapters(memory)
        if library is not None and multiplies:
            self._fuse_layers(library)

    def _rank_of(self, lora_id: int) -> int:
        """The largest rank of any of its modules; 0 for the owner of a slot being written."""
        adapters = self.driver_worker.model_runner.lora_manager._adapter_manager
        adapter: LoRAModel | None = adapters.get_adapter(lora_id)
        if adapter is None:
            return 0
        if adapter not in self._ranks:
            self._ranks[adapter] = max(map(_rank, adapter.loras.values()))
        return self._ranks[adapter]

    def _lay_out_adapters(self, memory: HugePages) -> None:
        """Before any adapter is there, so that nobody holds on to the old memory."""
        for module in self.driver_worker.get_model().modules():
            if isinstance(module, BaseLinearLayerWithLoRA):
                module.lora_a_stacked = tuple(map(memory.copy, module.lora_a_stacked))
                module.lora_b_stacked = tuple(
                    lay_out_for_reading(stack, memory) for stack in module.lora_b_stacked
                )
                linear.shorten_calls(module)

    def _fuse_layers(self, library: ctypes.CDLL) -> None:
        assert GroupedPunicaWrapper.kernel is not None
        workspace = decoder_layer.Workspace()
        for module in self.driver_worker.get_model().modules():
            decoder_layer.fuse(library, GroupedPunicaWrapper.kernel, workspace, module)

    def shutdown(self) -> None:
        """Ends this process, the last thing that vLLM wants of it.

        vLLM would take the worker apart and Python the interpreter, with a full garbage collection
        over every object of torch at each step. That takes longer than the five seconds after which
        the parent kills, and the memory goes back with the process in any case.
        """
        logging.shutdown()
        os._exit(0)


def _rank(weights: LoRALayerWeights) -> int:
    # Fused layers have a matrix for each part, or none where the adapter leaves a part alone.
    parts = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a]
    return max((part.shape[0] for part in parts if part is not None), default=0)
