"""The check in the engine before a version serves: does an adapter do what it was trained to do?

An adapter whose tensors match no module, or are all zero, is served as the base model without a
word from the engine. So before an alias may point at a version, the log-probabilities of fixed
prompts are compared with the base model's. And one whose scale is read wrongly, or that belongs to
another base model, is served as something else: so where the manifest brings log-probabilities of
the training, the engine's have to be the same, up to twice the noise of the engine itself. That is
measured without an adapter, as the difference of the base model from the reference's.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.reference import Reference, differences, mean_difference
from loragate.adapters.rendering.renderer import Renderer
from loragate.server.engine.protocol import Engine, LoadedAdapter
from loragate.server.engine.scoring import score_prompt
from loragate.server.errors import InvalidRequest, MachineFault

# Two kinds of text, in one short prompt: on a CPU each token of it takes about a millisecond.
_PROMPTS = ('Which documents do I need? {"city": "Paris", "population":',)
# So many tokens of it are scored first; mostly they show an effect, and the others are left.
_FIRST_TOKENS = 6
# In nats. Rounding between two runs in bfloat16 stays well below; trained adapters are far above.
_LEAST_EFFECT = 0.02
# How much weaker or stronger than in training an adapter has to be for its scale to be suspected.
_SUSPECT_SCALE = 1.2
# So many tokens' noise tell enough of an engine; they are measured once.
_NOISE_TOKENS = 192
# How many times the usual tolerance a quantised base model may need; another base model of the same
# shapes differs by eight times of it or more.
_QUANTISED_ROOM = 5.0
_LARGEST = 1e30  # of a log-probability, in nats; beyond it there is no number left


class Probe:
    """Scores prompts with and without an adapter. Remembers the base model's scores of its own."""

    def __init__(self, engine: Engine, renderer: Renderer, *, is_quantised: bool = False) -> None:
        """`is_quantised` where the engine holds the base model in fewer bits than it was given."""
        self._engine = engine
        self._room = _QUANTISED_ROOM if is_quantised else 1.0
        self._prompts = [renderer.encode(text, add_special_tokens=False) for text in _PROMPTS]
        self._base: list[float] = []
        self._noise: dict[tuple[int, ...], list[float]] = {}  # in nats, by prompt
        self._one_warms = asyncio.Lock()

    async def warm(self) -> None:
        """Scores the base model, so that no check has to wait for the engine's slow first steps.

        Raises MachineFault where the base model's own scores are no numbers, and EngineDead.
        """
        async with self._one_warms:
            if not self._base:
                self._base = await self._score_base(self._prompts)

    async def check(self, adapter: LoadedAdapter, reference: Reference | None = None) -> str:
        """What was found, in a sentence that begins with a code; empty without a reference.

        Raises InvalidAdapter: `no_effect` for an adapter that changes nothing, `not_finite` for
        one with which the engine computes no numbers, `reference_mismatch` for one that differs
        from its reference, `unusable_reference` where this model cannot score the reference's
        prompts. MachineFault and EngineDead say nothing about the adapter.
        """
        await self.warm()
        effect = await self._effect(adapter)
        if not effect >= _LEAST_EFFECT:
            raise InvalidAdapter(
                "no_effect",
                f"With this adapter the engine says what the base model says (log-probabilities "
                f"differ by {effect:.4f} at most): its weights are zero, untrained, or of modules "
                "that this model does not have. Train it longer, or for this base model.",
            )
        return "" if reference is None else await self._compare(adapter, reference)

    async def _effect(self, adapter: LoadedAdapter) -> float:
        """The largest difference from the base model; of the first tokens alone, where that is
        enough already: what comes after a token changes nothing of its score, and each token more
        makes a step longer, for whose end others wait.
        """
        effect, seen = -math.inf, 0
        for prompt_ids in self._prompts:
            base = self._base[seen : seen + len(prompt_ids) - 1]
            seen += len(base)
            for ids in (prompt_ids[:_FIRST_TOKENS], prompt_ids):
                scores = await self._score_adapter([ids], adapter)
                if scores:
                    effect = max(effect, *differences(scores, base[: len(scores)]))
                if effect >= _LEAST_EFFECT:
                    return effect
        return effect

    async def _compare(self, adapter: LoadedAdapter, reference: Reference) -> str:
        self._check_prompts(reference)
        prompts = [prompt.token_ids for prompt in reference.prompts]
        try:
            scores = await self._score_adapter(prompts, adapter)
        except InvalidRequest as error:
            raise InvalidAdapter(
                "unusable_reference",
                f"The engine does not score the prompts of the manifest's reference: {error} Make "
                "the reference with the model that is served.",
            ) from error
        differing = list(differences(scores, reference.adapter))
        mean = fmean(differing)
        noise = await self._noise_of(reference)
        allowed = reference.allowed_at(noise, self._room)
        if mean <= allowed:
            return (
                f"proven: log-probabilities differ by {mean:.4f} nats on average from the "
                f"reference ({reference.dtype}), and those of the base model alone by {noise:.4f}; "
                f"allowed are {allowed:.4f}, and the adapter moves them by {reference.effect:.4f}"
            )
        # Only to tell the cause: what passes is not held up by it.
        base = await self._score_base(prompts)
        raise InvalidAdapter(
            "reference_mismatch",
            f"In the engine this adapter is not what was trained: log-probabilities differ from "
            f"the manifest's reference ({reference.dtype}) by {mean:.3f} nats on average, "
            f"{max(differing):.3f} at most, and the tolerance is {allowed:.3f} on "
            f"average. {_cause(reference, scores, base)}",
        )

    async def _noise_of(self, reference: Reference) -> float:
        """How far this engine is from the reference's without an adapter, in nats on average: on
        the reference's prompts, or on what was scored before, whichever is more.

        It is the engine's and not the adapter's: once enough is known, nothing more is scored.
        """
        known = {prompt.token_ids: prompt for prompt in reference.prompts}
        measured = [noise for ids, noise in self._noise.items() if ids in known]
        is_known = len(measured) == len(known) or self._noise_tokens() >= _NOISE_TOKENS
        if not is_known:
            fresh = {ids: prompt for ids, prompt in known.items() if ids not in self._noise}
            for ids, prompt in fresh.items():
                scores = await self._score_base([ids])
                found = list(differences(scores, prompt.base))
                measured.append(found)
                # Another base model's scores are no noise, and never become what others may differ.
                if fmean(found) <= self._room * reference.tolerance.nats:
                    self._noise[ids] = found
        all_known = [each for noise in self._noise.values() for each in noise]
        of_prompts = [each for noise in measured for each in noise]
        return max(fmean(each) for each in (all_known, of_prompts) if each)

    def _noise_tokens(self) -> int:
        return sum(map(len, self._noise.values()))

    def _check_prompts(self, reference: Reference) -> None:
        model = self._engine.model
        largest_id = max(max(prompt.token_ids) for prompt in reference.prompts)
        longest = max(len(prompt.token_ids) for prompt in reference.prompts)
        if largest_id >= model.vocab_size or longest >= model.max_model_len:
            raise InvalidAdapter(
                "unusable_reference",
                f"The manifest's reference has the token {largest_id} and up to {longest} tokens "
                f"a prompt; this model knows {model.vocab_size} tokens and takes fewer than "
                f"{model.max_model_len} at once. Make the reference with the model that is served "
                "and with shorter prompts.",
            )

    async def _score_adapter(
        self, prompts: Sequence[Sequence[int]], adapter: LoadedAdapter
    ) -> list[float]:
        """Raises InvalidAdapter where any score is no number."""
        scores = await self._score(prompts, adapter)
        # Every later comparison is of finite numbers only: each one with NaN would be false.
        if not _are_numbers(scores):
            raise InvalidAdapter(
                "not_finite",
                "With this adapter the engine computes log-probabilities that are no numbers (NaN "
                "or infinite): its weights or its alpha are too large for the engine's dtype, or "
                "the training diverged. Train again with a lower learning rate, or publish an "
                "earlier checkpoint.",
            )
        return scores

    async def _score_base(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        scores = await self._score(prompts, None)
        if not _are_numbers(scores):
            raise MachineFault(
                "The base model itself gives log-probabilities that are no numbers, so no adapter "
                "can be checked beside it.",
                reason="the base model's own log-probabilities are no numbers (NaN or infinite), "
                "so no adapter can be checked; choose another engine.dtype, or download the base "
                "model again",
            )
        return scores

    async def _score(
        self, prompts: Sequence[Sequence[int]], adapter: LoadedAdapter | None
    ) -> list[float]:
        """The log-probability of every prompt token but the first of each; NaN for one that the
        engine does not tell.
        """
        scores: list[float] = []
        # One after the other: a small step of the engine each, between those of its requests.
        for prompt_ids in prompts:
            scores += await score_prompt(self._engine, prompt_ids, adapter)
        return scores


def _are_numbers(scores: Iterable[float]) -> bool:
    """False for NaN and infinity, and for what would add up to one."""
    return all(abs(score) < _LARGEST for score in scores)


def _cause(reference: Reference, scores: Sequence[float], base: Sequence[float]) -> str:
    """The likeliest cause, and what to do about it."""
    base_gap = mean_difference(base, reference.base)
    if base_gap > reference.tolerance.nats:
        return (
            f"The base model alone differs by {base_gap:.3f}: it is not the one of the training, "
            "or is quantised otherwise. Train on the base model that is served, or state the "
            "tolerance that its quantisation needs."
        )
    strength = mean_difference(scores, base) / reference.effect
    if not 1 / _SUSPECT_SCALE < strength < _SUSPECT_SCALE:
        return (
            f"Its effect is {strength:.2f} times that of the training. Most likely its scale is "
            "read wrongly: use_rslora (alpha/sqrt(r) in place of alpha/r), lora_alpha or r of "
            "adapter_config.json are not those of the training; or the weights are of another run. "
            "Correct that and publish again."
        )
    return (
        "The base model is the one of the training, so the weights are not: they are of another "
        "run, were changed afterwards, or r and lora_alpha are. Publish the folder that the "
        "reference was computed from."
    )
