"""Estimates the memory that a training takes, to refuse one that cannot fit before it starts."""

from dataclasses import dataclass
from typing import Self

from transformers import PretrainedConfig

from loragate.trainer.errors import TrainingError
from loragate.trainer.settings import MethodSettings, TrainingSettings, resolved

_GIB = 2**30
# Python, PyTorch, the tokenizer and the rows.
_PROGRAM_BYTES = 700 * 2**20
# What autograd keeps for each layer and token, in widths of the residual and of the MLP.
_KEPT_HIDDEN = 14
_KEPT_MLP = 6
# Weight, gradient and both moments of AdamW, float32.
_TRAINED_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Widths:
    """Of a layer's states, of its MLP, of all query heads together, and of all key heads."""

    hidden: int
    mlp: int
    queries: int
    keys: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        hidden, heads = config.hidden_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or hidden // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(hidden, mlp_width(config), head * heads, head * key_heads)


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes, by their use."""

    weights: int
    trained: int
    activations: int
    logits: int
    program: int = _PROGRAM_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.logits + self.program

    def require(self, free: int, batch_size: int) -> None:
        """Raises TrainingError with the figures if `free` bytes are too few."""
        if self.total <= free:
            return
        raise TrainingError(
            f"training would take about {_gib(self.total)} of memory (weights "
            f"{_gib(self.weights)}, what is trained {_gib(self.trained)}, a batch of {batch_size} "
            f"rows {_gib(self.activations + self.logits)}) and {_gib(free)} are free; lower "
            "[training] batch_size (and raise gradient_accumulation), set gradient_checkpointing = "
            "true, lower [data] max_tokens, or take a smaller base model"
        )


def estimate_memory(
    config: PretrainedConfig,
    method: MethodSettings,
    training: TrainingSettings,
    *,
    longest_row: int,
    supervised_share: float,
) -> Memory:
    """For the largest batch, of `longest_row` tokens a row. `supervised_share`, from 0 to 1, is the
    share of tokens that have a loss. Within about a third of what models of Llama's architecture
    take.
    """
    text = config.get_text_config()
    hidden, mlp, layers = text.hidden_size, mlp_width(text), text.num_hidden_layers
    parameters = parameter_count(text)
    tokens = resolved(training.batch_size) * longest_row
    number_bytes = 2 if training.precision == "bf16" else 4
    kept_layers = 1 if training.gradient_checkpointing else layers
    checkpoints = tokens * hidden * number_bytes * layers if training.gradient_checkpointing else 0
    kept = tokens * (_KEPT_HIDDEN * hidden + _KEPT_MLP * mlp) * number_bytes * kept_layers
    trained = parameters if method.name == "full" else adapter_count(text, method)
    return Memory(
        weights=_weight_bytes(parameters, text.vocab_size * hidden, method, number_bytes),
        trained=trained * _TRAINED_BYTES,
        activations=kept + checkpoints,
        # The logits, their float32 copy, its softmax and gradient.
        logits=int(tokens * supervised_share) * text.vocab_size * 4 * 3,
    )


def mlp_width(config: PretrainedConfig) -> int:
    """The MLP's width; four times the hidden one, as is usual, where the configuration has none."""
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def parameter_count(config: PretrainedConfig) -> int:
    """The parameters of a model of Llama's architecture, by its configuration."""
    widths = _Widths.of(config)
    attention = 2 * widths.hidden * (widths.queries + widths.keys)
    layer = attention + 3 * widths.hidden * widths.mlp
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * widths.hidden
    return config.num_hidden_layers * layer + embeddings


def adapter_count(config: PretrainedConfig, method: MethodSettings) -> int:
    """Parameters of an adapter, by the widths of the layers that it changes."""
    widths = _Widths.of(config)
    attention = {
        "q_proj": widths.queries,
        "k_proj": widths.keys,
        "v_proj": widths.keys,
        "o_proj": widths.queries,
    }
    modules = resolved(method.target_modules)
    per_layer = sum(widths.hidden + attention.get(module, widths.mlp) for module in modules)
    return config.num_hidden_layers * per_layer * resolved(method.rank)


def _weight_bytes(
    parameters: int, embedding: int, method: MethodSettings, number_bytes: int
) -> int:
    if method.name == "full":
        return 0  # counted with what is trained
    if method.name != "qlora":
        return parameters * number_bytes
    linear_bytes = 1.0 if method.quantization == "int8" else 0.55  # a parameter, with its scale
    return int((parameters - embedding) * linear_bytes) + embedding * number_bytes


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
