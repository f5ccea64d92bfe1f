"""How long a context fits into a KV cache, told from a model's configuration alone.

Only of models all of whose layers keep keys and values for every token. Sliding windows, latent
attention (MLA), state-space layers and caches of another dtype are left to vLLM, which fits the
context itself when it starts: nothing is guessed. Knows no vllm; the figures are those of its
`v1/core/kv_cache_utils.py` on a CPU.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loragate.server.config import ConfigError
from loragate.server.engine.memory import gib

# On CPU vLLM hands the cache out in blocks of so many tokens, and keeps one of them for itself.
_BLOCK_TOKENS = 128
_UNUSABLE_BLOCKS = 1
# Those whose every layer is vLLM's `FullAttentionSpec`, unless a window is set.
_PLAIN = frozenset(
    {"llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "granite"}
    | {"olmo", "olmo2", "olmoe", "phi3", "smollm3", "stablelm"}
)
# Where `head_dim` is left out, these have one of their own instead of hidden_size / heads.
_OWN_HEAD_DIM = frozenset({"qwen3", "qwen3_moe", "gemma"})
# RoPE's kinds whose longer context `max_position_embeddings` states already; others scale it.
_STATED = frozenset({"default", "su", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})


class _Rope(msgspec.Struct):
    rope_type: str = ""
    type: str = ""  # its older name
    factor: float = 1.0


class _ModelConfig(msgspec.Struct, kw_only=True):
    """Of `config.json`, what decides; a model of another form does not decode."""

    model_type: str
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    hidden_size: int = 0
    head_dim: int | None = None
    sliding_window: int | None = None
    use_sliding_window: bool = True
    layer_types: tuple[str, ...] | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    original_max_position_embeddings: int | None = None
    model_max_length: object = None
    kv_lora_rank: object = None
    quantization_config: dict[str, object] | None = None

    @property
    def is_plain(self) -> bool:
        has_window = self.sliding_window is not None and self.use_sliding_window
        return (
            self.model_type in _PLAIN
            and not has_window
            and set(self.layer_types or ()) <= {"full_attention"}
            and self.kv_lora_rank is None
            and not (self.quantization_config or {}).get("kv_cache_scheme")
        )

    @property
    def width(self) -> int:
        """Of one head; 0 where it cannot be told."""
        if self.head_dim:
            return self.head_dim
        return (
            0 if self.model_type in _OWN_HEAD_DIM else self.hidden_size // self.num_attention_heads
        )

    @property
    def longest(self) -> int:
        """0 where it cannot be told."""
        if self.model_max_length is not None:
            return 0
        rope = self.rope_parameters or self.rope_scaling or _Rope()
        kind = rope.rope_type or rope.type or "default"
        if kind == "longrope":
            return self.original_max_position_embeddings or 0
        factor = 1.0 if kind in _STATED else rope.factor
        return int(self.max_position_embeddings * factor)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Of one model: bytes that one token takes in all layers, and the longest context, in tokens,
    that the model was made for.
    """

    token_bytes: int
    longest: int

    def tokens_in(self, cache_bytes: int) -> int:
        """The longest context of which one request fits; 0 where not even a short one does."""
        blocks = cache_bytes // (self.token_bytes * _BLOCK_TOKENS) - _UNUSABLE_BLOCKS
        return min(self.longest, max(0, blocks) * _BLOCK_TOKENS)

    def bytes_for(self, tokens: int) -> int:
        blocks = math.ceil(tokens / _BLOCK_TOKENS) + _UNUSABLE_BLOCKS
        return blocks * _BLOCK_TOKENS * self.token_bytes


def read_shape(model: Path, dtype: str = "auto") -> CacheShape | None:
    """Of a model's folder with `engine.dtype`; None where it cannot be told for certain."""
    try:
        config = msgspec.json.decode((model / "config.json").read_bytes(), type=_ModelConfig)
    except (OSError, msgspec.MsgspecError):
        return None
    if not config.is_plain or min(config.num_attention_heads, config.num_key_value_heads) < 1:
        return None
    # What is stored in float32 vLLM computes in 16 bits too, unless it is told otherwise.
    number_bytes = 4 if dtype == "float32" else 2
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.width
    if numbers < 1 or config.longest < 1:
        return None
    return CacheShape(numbers * number_bytes, config.longest)


def require_fit(shape: CacheShape, cache_gib: float, max_model_len: int) -> None:
    """Raises ConfigError where the context that was set, or any at all, takes more than the cache
    has. 0 as `max_model_len` means as much as fits.
    """
    cache_bytes = int(cache_gib * 2**30)
    fitting = shape.tokens_in(cache_bytes)
    if max_model_len > shape.longest:
        return  # vLLM knows whether the model can go beyond what it was made for
    needed = shape.bytes_for(max_model_len or 1)
    if needed <= cache_bytes:
        return
    raised = f"raise engine.kv_cache_gib to {math.ceil(needed / 2**30 * 100) / 100:g}"
    if not fitting:
        raise ConfigError(
            f"engine.kv_cache_gib is {cache_gib:g}, in which not even the shortest request of this "
            f"model fits (engine.max_model_len is {max_model_len}); {raised} or more."
        )
    raise ConfigError(
        f"engine.max_model_len is {max_model_len}, and one such request takes {gib(needed)} of KV "
        f"cache where engine.kv_cache_gib is {cache_gib:g}; {raised} or more, or lower "
        f"engine.max_model_len to {fitting} (0 takes what fits)."
    )
