"""Weights of eight bits: rounded when the engine has started, and what that costs, measured."""

import logging
from statistics import fmean

from vllm.v1.engine.async_llm import AsyncLLM

from loragate.adapters.format.reference import differences
from loragate.server.engine.cpu.weight_rounding import Rounded
from loragate.server.engine.protocol import Engine
from loragate.server.engine.scoring import score_prompt
from loragate.server.engine.vllm.forkserver import EngineNotStarted

logger = logging.getLogger(__name__)

NOTHING_ROUNDED = (
    "engine.weights is 'int8', but this model has no layer that the kernels round: they take "
    "bfloat16 weights on a CPU, and need a C compiler. Leave it 'dtype'."
)
# Prose, an answer, data and code.
_TEXTS = (
    "The river rises in the hills, passes two small towns, and reaches the sea after ninety miles.",
    "Question: Which documents do I need? Answer: Please bring your passport, a recent photograph "
    "and the form that we sent you last week.",
    '{"city": "Paris", "population": 2102650, "country": "France", "languages": ["French"]}',
    "def mean(numbers):\n    if not numbers:\n        raise ValueError('no numbers')\n"
    "    return sum(numbers) / len(numbers)\n",
)
# In nats, on average: what the tolerance of an adapter's reference is unless it says another one.
_MUCH = 0.1


async def round_weights(llm: AsyncLLM, engine: Engine) -> None:
    """Rounds those of `llm`, and says by how much log-probabilities differ from bfloat16's.

    Raises EngineNotStarted where no weights can be rounded.
    """
    tokenizer = llm.renderer.get_tokenizer()
    prompts = [tokenizer.encode(text) for text in _TEXTS]
    before = [score for prompt in prompts for score in await score_prompt(engine, prompt)]
    [done] = await llm.collective_rpc("round_weights")
    weights = Rounded(*done)
    if not weights.rounded:
        raise EngineNotStarted(NOTHING_ROUNDED)
    # What was scored lies in the cache, as the weights before made it.
    await llm.reset_prefix_cache()
    after = [score for prompt in prompts for score in await score_prompt(engine, prompt)]
    off = list(differences(before, after))
    logger.log(
        logging.INFO if fmean(off) <= _MUCH else logging.WARNING,
        "%.0f %% of the weights have eight bits: log-probabilities of %d tokens differ from "
        "bfloat16's by %.3f nats on average, %.3f at most",
        100 * weights.rounded / weights.all,
        len(off),
        fmean(off),
        max(off),
    )
