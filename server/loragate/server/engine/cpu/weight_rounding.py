"""Rounds a model's weights to eight bits, once vLLM's worker has loaded them in bfloat16.

vLLM mixes `WeightRounding` into its worker (`worker_extension_cls`). The model computes with both,
one after the other, so what the rounding costs can be measured on the machine that serves.
"""

from typing import TYPE_CHECKING, NamedTuple

from loragate.server.engine.cpu.linear import PackedLinear

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class Rounded(NamedTuple):
    """How many weights of linear layers there are, and how many of them have eight bits now."""

    rounded: int
    all: int


class WeightRounding:
    """What the worker can do besides; called through `collective_rpc`."""

    if TYPE_CHECKING:
        model_runner: "GPUModelRunner"

    def round_weights(self) -> Rounded:
        """Every linear layer's that the kernels cover, the output's among them. For good."""
        rounded = total = 0
        for module in self.model_runner.get_model().modules():
            linear = getattr(module, "cpu_linear", None)
            if linear is None:
                continue
            if isinstance(linear, PackedLinear):
                count = linear.out_features * linear.in_features
                rounded += count if linear.quantise() else 0
            else:  # oneDNN computes it, and may have taken the weights away
                count = sum(weights.numel() for weights in module.parameters())
            total += count
        return Rounded(rounded, total)
