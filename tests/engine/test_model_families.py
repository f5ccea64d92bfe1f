"""Small random models of other families than the default's, against transformers.

What the compiled kernels do not cover of a model (biases, a norm of its own, an odd width, windows
of attention) has to go vLLM's way, part by part.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from loragate.adapters.base_models.preparation import BaseModel
from loragate.server.config import EngineConfig
from loragate.server.core import SamplingParams
from loragate.server.engine.cpu.isa import usable
from loragate.server.engine.protocol import Engine, EngineRequest
from loragate.server.engine.vllm.engine import run_engine
from support.models.tokenizers import byte_tokenizer

pytestmark = pytest.mark.slow  # an engine each, some ten seconds

VOCABULARY, CONTEXT, WINDOW = 288, 128, 16
LENGTHS = (3, 40, 90)  # asked together; the last ones are longer than a window
# In nats, on average over a prompt: weights and activations of bfloat16 in place of float32.
BOUND = 0.05
ALIKE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.1,
    "bos_token_id": 258,
    "eos_token_id": 256,
    "pad_token_id": 256,
}


def family(kind: type[PretrainedConfig], **own: Any) -> PretrainedConfig:
    return kind(**ALIKE | own)


FAMILIES = {
    "llama": family(LlamaConfig, head_dim=32),
    "llama, an odd width": family(LlamaConfig, head_dim=32, hidden_size=72, intermediate_size=100),
    "llama, biases": family(LlamaConfig, head_dim=32, attention_bias=True, mlp_bias=True),
    "llama, tied head": family(LlamaConfig, head_dim=32, tie_word_embeddings=True),
    "qwen2": family(Qwen2Config),
    "qwen3": family(Qwen3Config, head_dim=32),
    "gemma3": family(
        Gemma3TextConfig, head_dim=32, sliding_window=WINDOW, query_pre_attn_scalar=32
    ),
    "mistral": family(MistralConfig, head_dim=32, sliding_window=WINDOW),
    "phi3": family(Phi3Config),
}


def write(folder: Path, config: PretrainedConfig) -> BaseModel:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():  # biases begin as zeros, and norms as ones
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return BaseModel("tiny", folder, "sha256:base")


def expected(folder: Path, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores: list[torch.Tensor] = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            logits = model(ids).logits[0, :-1].log_softmax(-1)
            scores.append(logits.gather(1, ids[0, 1:, None])[:, 0])
    return scores


async def score(engine: Engine, id_: str, prompt: Sequence[int]) -> torch.Tensor:
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    scores: list[float] = []
    async for delta in engine.generate(EngineRequest(id_, prompt, sampling)):
        scores += [entry.logprob for entry in delta.prompt_logprobs or () if entry is not None]
    return torch.tensor(scores)


@pytest.mark.parametrize("isa", [isa.name for isa in usable() if isa.name != "portable"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_prompt_is_scored_as_by_transformers(tmp_path: Path, name: str, isa: str) -> None:
    base = write(tmp_path / "model", FAMILIES[name])
    chance = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 250, (length,), generator=chance).tolist() for length in LENGTHS]

    async def run() -> list[torch.Tensor]:
        config = EngineConfig(
            dtype="bfloat16", isa=isa, max_loras=1, max_lora_rank=8,  # type: ignore[arg-type]
            max_model_len=CONTEXT, kv_cache_gib=0.1,
        )  # fmt: skip
        async with run_engine(config, base, tmp_path / "cache") as engine:
            asked = (score(engine, str(i), prompt) for i, prompt in enumerate(prompts))
            return await asyncio.gather(*asked)

    for said, right in zip(asyncio.run(run()), expected(base.path, prompts), strict=True):
        assert (said - right).abs().mean() < BOUND
