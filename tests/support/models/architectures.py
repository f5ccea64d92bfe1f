"""Tiny models of many architectures, with random weights and their own logits' scales."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SIZES: Final = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
_EXPERTS: Final = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK: Final = {
    **_EXPERTS,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
}
_MAMBA: Final = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
}

# By what transformers calls them; what else than the sizes each needs.
ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "phi3": {},
    "smollm3": {},
    "glm4": {},
    "glm4_moe": {**_EXPERTS, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": _DEEPSEEK,
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "falcon_h1": {**_MAMBA, "lm_head_multiplier": 0.25},
}
SCALED: Final = frozenset({"gemma2", "granite", "cohere", "cohere2", "falcon_h1"})


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **{**_SIZES, **ARCHITECTURES[name]})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def targets_of(name: str) -> tuple[str, ...]:
    """Linear layers of attention."""
    if name == "phi3":
        return ("qkv_proj", "o_proj")
    return ("q_b_proj", "o_proj") if name == "deepseek_v3" else ("q_proj", "o_proj")
