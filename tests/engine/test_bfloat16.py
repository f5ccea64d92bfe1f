"""The engine in bfloat16, where other kernels compute than in the float32 of all other tests."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loragate.adapters.base_models.preparation import load
from loragate.adapters.format.files import inspect
from loragate.adapters.format.reference import differences
from loragate.adapters.names import AdapterVersion
from loragate.server.config import EngineConfig
from loragate.server.core import SamplingParams
from loragate.server.engine.protocol import Engine, EngineRequest, LoadedAdapter
from loragate.server.engine.vllm.engine import run_engine
from support.server.real_server import ROOT, World

EXAMPLES = ("acme-support", "globex-router")
# In nats, on average over a prompt; the adapters move log-probabilities by 2 to 4.
BOUND = 0.15


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, and what was computed of it in float32 where the adapter was trained."""

    token_ids: Sequence[int]
    adapter: LoadedAdapter | None
    expected: Sequence[float]


def test_mixed_batch_in_bfloat16_is_within_the_bound_of_float32(world: World) -> None:
    cases = _cases()
    base = load(world.home.models / "smollm2-135m-instruct")

    async def run() -> list[list[float]]:
        config = EngineConfig(
            dtype="bfloat16", max_loras=2, max_lora_rank=16, max_model_len=512, kv_cache_gib=0.3
        )
        async with run_engine(config, base, world.home.cache) as engine:
            for adapter in {
                case.adapter.version: case.adapter for case in cases if case.adapter
            }.values():
                await engine.load(adapter)
            asked = (_score(engine, str(number), case) for number, case in enumerate(cases))
            return await asyncio.gather(*asked)

    for said, case in zip(asyncio.run(run()), cases, strict=True):
        assert fmean(differences(said, case.expected)) < BOUND, case.adapter


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
