"""How much memory a run will take, before it takes it."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from loragate.trainer.errors import TrainingError
from loragate.trainer.settings.method import MethodSettings
from loragate.trainer.settings.section import settled
from loragate.trainer.settings.training import TrainingSettings

_GIB = 2**30
# Python, PyTorch, the tokenizer and the rows.
_PROGRAM_BYTES = 700 * 2**20
# What autograd keeps for each layer and token, in widths of the residual and of the MLP.
_KEPT_HIDDEN = 14
_KEPT_MLP = 6
# Weight, gradient and both moments of AdamW, float32.
_TRAINED_BYTES = 16


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, by what they are for."""

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
    """For the longest batch. Rough, within about a third for models of Llama's kind."""
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    parameters = parameter_count(text)
    tokens = training.batch_size * longest_row
    number = 2 if training.precision == "bf16" else 4
    kept_layers = 1 if training.gradient_checkpointing else layers
    checkpoints = tokens * hidden * number * layers if training.gradient_checkpointing else 0
    kept = tokens * (_KEPT_HIDDEN * hidden + _KEPT_MLP * mlp) * number * kept_layers
    trained = parameters if method.name == "full" else adapter_count(text, method)
    return Memory(
        weights=_weight_bytes(parameters, text.vocab_size * hidden, method, number),
        trained=trained * _TRAINED_BYTES,
        activations=kept + checkpoints,
        # The logits, their float32 copy, its softmax and gradient.
        logits=int(tokens * supervised_share) * text.vocab_size * 4 * 3,
    )


def parameter_count(config: PretrainedConfig) -> int:
    """Of a model of Llama's kind, by its configuration."""
    hidden = config.hidden_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    attention = 2 * hidden * head * (config.num_attention_heads + keys)
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    return config.num_hidden_layers * (attention + 3 * hidden * mlp) + embeddings


def adapter_count(config: PretrainedConfig, method: MethodSettings) -> int:
    """Parameters of an adapter, by the widths of the layers that it changes."""
    hidden = config.hidden_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    queries = head * config.num_attention_heads
    keys = head * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    widths = {
        "q_proj": hidden + queries,
        "k_proj": hidden + keys,
        "v_proj": hidden + keys,
        "o_proj": queries + hidden,
        "gate_proj": hidden + mlp,
        "up_proj": hidden + mlp,
        "down_proj": mlp + hidden,
    }
    modules = settled(method.target_modules)
    per_layer = sum(widths.get(module, hidden + mlp) for module in modules)
    return config.num_hidden_layers * per_layer * settled(method.rank)


def _weight_bytes(parameters: int, embedding: int, method: MethodSettings, number: int) -> int:
    if method.name == "full":
        return 0  # counted with what is trained
    if method.name != "qlora":
        return parameters * number
    per_linear = 1.0 if method.quantization == "int8" else 0.55
    return int((parameters - embedding) * per_linear) + embedding * number


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
