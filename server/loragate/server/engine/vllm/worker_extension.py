"""What vLLM's worker can do besides, when it serves adapters."""

from loragate.server.engine.cpu.weight_rounding import WeightRounding
from loragate.server.engine.vllm.lora_staging import AdapterStaging


class WorkerExtension(AdapterStaging, WeightRounding):
    """vLLM takes one class."""
