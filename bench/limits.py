"""What the machine allows at best: the time to read the bytes, or to make the operations."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import safe_open

from bench.measures import ANSWER_TOKENS, Case

if TYPE_CHECKING:
    from bench.processor import Processor

_BYTES = {"bfloat16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one model with adapters in bfloat16, on one machine. A step takes at least as long as
    reading each weight once for all of its streams, and as the weights' products; attention,
    sampling and all else are taken to be free.
    """

    weights: int  # parameters; the vocabulary's serve as the last layer too
    vocabulary: int  # of these
    bytes_per_weight: int
    adapter_bytes: int
    token_bytes: int  # of the attention's cache
    reads: float  # bytes a second
    multiplies: float  # operations a second, by whoever is fastest

    @classmethod
    def of(cls, model: Path, adapter: Path, weights: str, machine: "Processor") -> Self:
        config = json.loads((model / "config.json").read_text())
        head = config["hidden_size"] // config["num_attention_heads"]
        return cls(
            weights=sum(map(_count, model.glob("*.safetensors"))),
            vocabulary=config["vocab_size"] * config["hidden_size"],
            bytes_per_weight=_BYTES[weights],
            adapter_bytes=2 * _count(adapter / "adapter_model.safetensors"),
            token_bytes=2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head,
            reads=machine.reads * 1e9,
            multiplies=max(machine.own, machine.torch_bfloat16, machine.torch_float32) * 1e9,
        )

    def of_case(self, case: Case) -> dict[str, float]:
        """Tokens a second, and the medians of the first token and between tokens."""
        cached = case.streams * (case.prompt_tokens + ANSWER_TOKENS / 2)
        step = max(
            self.seconds_to_read(case.adapters) + cached * self.token_bytes / self.reads,
            2 * case.streams * self.weights / self.multiplies,
        )
        # Half of the streams have their first token when half of the prompts have been read.
        tokens = max(1.0, case.streams / 2) * case.prompt_tokens
        prompts = 2 * tokens * (self.weights - self.vocabulary) / self.multiplies
        return {
            case.speed: case.streams / step,
            case.first_token: max(prompts, self.seconds_to_read(0)),
            case.between_tokens: step * 1000,
        }

    def seconds_to_read(self, adapters: int) -> float:
        return self._bytes(adapters) / self.reads

    def mib(self, adapters: int) -> float:
        return self._bytes(adapters) / 2**20

    def _bytes(self, adapters: int) -> int:
        return self.weights * self.bytes_per_weight + adapters * self.adapter_bytes


def _count(path: Path) -> int:
    """The numbers in a file of tensors."""
    with safe_open(path, "pt") as tensors:
        names = list(tensors.keys())
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
