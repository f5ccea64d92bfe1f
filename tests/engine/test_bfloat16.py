"""The engine in bfloat16, where other kernels compute than in the float32 of all other tests, and
with weights of eight bits.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import pytest

from loragate.adapters.base_models.preparation import load
from loragate.adapters.format.files import inspect
from loragate.adapters.format.reference import differences
from loragate.adapters.names import AdapterVersion
from loragate.server.config import EngineConfig
from loragate.server.core import SamplingParams
from loragate.server.engine.protocol import Engine, EngineRequest, LoadedAdapter
from loragate.server.engine.vllm.engine import run_engine
from loragate.server.engine.vllm.forkserver import EngineNotStarted
from support.server.real_server import ROOT, World

EXAMPLES = ("acme-support", "globex-router")
# In nats, on average over a prompt; the adapters move log-probabilities by 2 to 4.
BOUNDS = {"dtype": 0.15, "int8": 0.25}


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, and what was computed of it in float32 where the adapter was trained."""

    token_ids: Sequence[int]
    adapter: LoadedAdapter | None
    expected: Sequence[float]


@pytest.mark.parametrize("weights", ["dtype", pytest.param("int8", marks=pytest.mark.slow)])
def test_mixed_batch_in_bfloat16_is_within_the_bound_of_float32(
    world: World, caplog: pytest.LogCaptureFixture, weights: Literal["dtype", "int8"]
) -> None:
    cases = _cases()
    base = load(world.home.models / "smollm2-135m-instruct")

    async def run() -> list[list[float]]:
        config = EngineConfig(
            dtype="bfloat16",
            weights=weights,
            max_loras=2,
            max_lora_rank=16,
            max_model_len=512,
            kv_cache_gib=0.3,
        )
        async with run_engine(config, base, world.home.cache) as engine:
            for adapter in {
                case.adapter.version: case.adapter for case in cases if case.adapter
            }.values():
                await engine.load(adapter)
            asked = (_score(engine, str(number), case) for number, case in enumerate(cases))
            return await asyncio.gather(*asked)

    with caplog.at_level(logging.INFO, "loragate"):
        answers = asyncio.run(run())
    for said, case in zip(answers, cases, strict=True):
        assert fmean(differences(said, case.expected)) < BOUNDS[weights], case.adapter
    says_rounding = "100 % of the weights have eight bits: log-probabilities of" in caplog.text
    assert says_rounding == (weights == "int8")


def test_weights_of_eight_bits_are_refused_where_no_kernel_rounds_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(world.home.root))  # where there is no compiler
    monkeypatch.setenv("CC", "")
    base = load(world.home.models / "smollm2-135m-instruct")

    async def run() -> None:
        async with run_engine(EngineConfig(weights="int8"), base, world.home.cache):
            pass

    with pytest.raises(EngineNotStarted, match=r"engine.weights is 'int8', .* need a C compiler"):
        asyncio.run(run())


def _cases() -> list[Case]:
    """By both adapters and by the base model, one after the other."""
    cases = []
    for number, name in enumerate(EXAMPLES, start=1):
        files = inspect(ROOT / "examples" / "adapters" / name)
        version = AdapterVersion("tests", name, 1, str(number), number)
        reference = files.manifest.reference
        assert reference is not None
        for prompt in reference.prompts:
            adapter = LoadedAdapter(version, files.folder)
            cases.append(Case(prompt.token_ids, adapter, prompt.adapter))
            cases.append(Case(prompt.token_ids, None, prompt.base))
    return cases


async def _score(engine: Engine, id_: str, case: Case) -> list[float]:
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    request = EngineRequest(id_, case.token_ids, sampling, case.adapter)
    scores: list[float] = []
    async for delta in engine.generate(request):
        scores += [entry.logprob for entry in delta.prompt_logprobs or () if entry is not None]
    return scores
