"""Log-probabilities that an engine gives to the tokens of a prompt."""

import itertools
import math
from collections.abc import Sequence

from loragate.server.core import SamplingParams, TokenLogprob
from loragate.server.engine.protocol import PROBE_ID_PREFIX, Engine, EngineRequest, LoadedAdapter

_count = itertools.count(1)  # ids of one process's requests differ


async def score_prompt(
    engine: Engine, prompt_ids: Sequence[int], adapter: LoadedAdapter | None = None
) -> list[float]:
    """Of every token but the first, in nats; NaN for one that the engine does not tell."""
    request = EngineRequest(
        id=f"{PROBE_ID_PREFIX}{next(_count)}",
        prompt_ids=prompt_ids,
        sampling=SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
        adapter=adapter,
        cache_salt="probe",
    )
    entries: list[TokenLogprob | None] = []
    async for delta in engine.generate(request):
        entries += delta.prompt_logprobs or ()
    scores = [_number(entry) for entry in entries[1:]]
    expected = len(prompt_ids) - 1
    # As many as there are tokens, whatever the engine does: they are compared one by one.
    return [*scores[:expected], *[math.nan] * (expected - len(scores))]


def _number(entry: TokenLogprob | None) -> float:
    score: object = None if entry is None else entry.logprob
    return float(score) if isinstance(score, float | int) else math.nan
