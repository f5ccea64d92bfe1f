"""The gate's last part, in the engine: does an adapter do anything there?

An adapter whose tensors match no module, or are all zero, is served as the base model without a
word from the engine. So before an alias may point at a version, the log-probabilities of fixed
prompts are compared with the base model's.
"""

from collections.abc import Sequence

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.rendering import Renderer
from loragate.server.core import SamplingParams
from loragate.server.engine import Engine, EngineRequest, LoadedAdapter

# Short: a prompt holds every stream up for its one step, by about a millisecond a token on a CPU.
_PROMPTS = ("Which documents do I need?", '{"city": "Paris", "population":')
# In nats. Rounding between two runs in bfloat16 stays well below; trained adapters are far above.
_LEAST_EFFECT = 0.02


class Probe:
    """Scores fixed prompts with and without an adapter. Remembers the base model's scores."""

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self._engine = engine
        self._prompt_ids = [renderer.encode(text, add_special_tokens=False) for text in _PROMPTS]
        self._base: list[float] = []
        self._count = 0

    async def warm(self) -> None:
        """Scores the base model, so that no check has to wait for the engine's slow first steps."""
        if not self._base:
            self._base = await self._score(None)

    async def check(self, adapter: LoadedAdapter) -> None:
        """Raises InvalidAdapter (`no_effect`) for an adapter that changes nothing."""
        await self.warm()
        scores = await self._score(adapter)
        effect = max(abs(ours - base) for ours, base in zip(scores, self._base, strict=True))
        if effect < _LEAST_EFFECT:
            raise InvalidAdapter(
                "no_effect",
                f"With this adapter the engine says what the base model says (log-probabilities "
                f"differ by {effect:.4f} at most): its weights are zero, untrained, or of modules "
                "that this model does not have. Train it longer, or for this base model.",
            )

    async def _score(self, adapter: LoadedAdapter | None) -> list[float]:
        """The log-probability of every prompt token but the first of each."""
        scores: list[float] = []
        for prompt_ids in self._prompt_ids:
            scores += await self._score_prompt(prompt_ids, adapter)
        return scores

    async def _score_prompt(
        self, prompt_ids: Sequence[int], adapter: LoadedAdapter | None
    ) -> list[float]:
        self._count += 1
        request = EngineRequest(
            id=f"probe-{self._count}",
            prompt_ids=prompt_ids,
            sampling=SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
            adapter=adapter,
            cache_salt="probe",
        )
        scores: list[float] = []
        async for delta in self._engine.generate(request):
            scores += [entry.logprob for entry in delta.prompt_logprobs or () if entry is not None]
        return scores
