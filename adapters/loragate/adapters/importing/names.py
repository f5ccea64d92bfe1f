"""What trainers call a tensor, taken apart: which module of the base model, which part of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from loragate.adapters.importing.refusal import Refusal

# A tensor's name ends with its part: as PEFT says it now and with an adapter's name in between, as
# MLX and torchtune do, as kohya does. Parts of methods beside LoRA are PEFT's.
_PART: Final = re.compile(
    r"\.(?P<part>lora_A|lora_B|lora_a|lora_b|lora_E|lora_down|lora_up|lora_embedding_A|"
    r"lora_embedding_B|lora_magnitude_vector|lora_ranknum|vera_lambda_b|vera_lambda_d|ia3_l|alpha|"
    r"bias|modules_to_save)"
    r"(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?$"
)
_CANONICAL: Final = {
    "lora_a": "lora_A",
    "lora_b": "lora_B",
    "lora_down": "lora_A",
    "lora_up": "lora_B",
}
# What wrappers put into a module's path: compilation, sharding, checkpointing, PEFT itself.
_WRAPPERS: Final = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "base_layer"}
)
_PREFIX: Final = re.compile(r"^(?:base_model\.model\.)+")
_KOHYA: Final = re.compile(r"^lora_(?:te\d?_|unet_|transformer_|llm_)?")
_OTHERS_WORDS: Final = {
    "attn.output_proj": "self_attn.o_proj",
    "attn.": "self_attn.",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_GGUF: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAME: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight\.lora_([ab])")


@dataclass(frozen=True, slots=True)
class TensorName:
    """`module` is the path as written, without prefixes of PEFT; `part` in PEFT's words."""

    module: str
    part: str
    adapter: str | None = None


def parse_name(name: str) -> TensorName | None:
    """None for a tensor that is no part of an adapter by any layout's rule."""
    found = _PART.search(name)
    if found is None:
        return None
    part = _CANONICAL.get(found["part"], found["part"])
    return TensorName(_PREFIX.sub("", name[: found.start()]), part, found["adapter"])


def parse_gguf_name(name: str) -> TensorName | None:
    """As llama.cpp calls tensors: `blk.0.attn_q.weight.lora_a`."""
    found = _GGUF_NAME.fullmatch(name)
    if found is None or found[2] not in _GGUF:
        return None
    module = f"model.layers.{found[1]}.{_GGUF[found[2]]}"
    return TensorName(module, "lora_A" if found[3] == "a" else "lora_B")


class Modules:
    """The base model's linear layers, found by what others call them.

    Without a base model (`names` empty) only what PEFT and wrappers put before a name is taken off.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._by_underscores = {name.replace(".", "_"): name for name in names}

    def resolve(self, module: str) -> str:
        """The base model's name for a module. Raises Refusal where there is none, or several."""
        parts = [part for part in module.split(".") if part not in _WRAPPERS]
        plain = _PREFIX.sub("", ".".join(parts))
        if not self._names:
            return plain
        for candidate in self._candidates(plain):
            if candidate in self._names:
                return candidate
        raise Refusal(
            "unknown_module",
            f"{module!r} is no linear layer of the base model, by any spelling that is known; "
            "import it for the base model that it was trained on",
        )

    def find(self, module: str) -> str | None:
        """As `resolve`; None where there is none."""
        try:
            return self.resolve(module)
        except Refusal:
            return None

    def fused_parent(self, module: str, fused: str) -> str | None:
        """The base model's module of the name `fused` beside this one."""
        return self.find(f"{module.rpartition('.')[0]}.{fused}")

    def _candidates(self, plain: str) -> Iterable[str]:
        for spelling in (plain, _translated(plain)):
            parts = spelling.split(".")
            for first in range(len(parts)):
                rest = ".".join(parts[first:])
                # Never less than the layer's number: "q_proj" alone is in every layer.
                if not re.search(r"\.\d+\.", f".{rest}."):
                    break
                yield rest
                yield f"model.{rest}"
                yield f"transformer.{rest}"
        underscored = self._by_underscores.get(_KOHYA.sub("", plain))
        if underscored is not None:
            yield underscored


def _translated(module: str) -> str:
    for theirs, ours in _OTHERS_WORDS.items():
        if f".{theirs}" in f".{module}" and f".{ours}" not in f".{module}":
            module = f".{module}".replace(f".{theirs}", f".{ours}").removeprefix(".")
    return module
