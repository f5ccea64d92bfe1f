"""What an adapter said where it was trained, to be held against what it says where it is served.

A scale that is read wrongly, another base model and changed weights load without a word and answer
with plausible text. They show in the log-probabilities of a few prompts. How these are computed is
not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

Dtype = Literal["float64", "float32", "bfloat16", "float16"]

# Scoring them delays a promotion, and other requests by a step for each prompt.
MOST_PROMPTS: Final = 8
MOST_PROMPT_TOKENS: Final = 256
# In nats. No model gives a token less, and sums of this many such numbers stay finite.
_LOWEST_LOGPROB: Final = -1e6
# In nats, on average. Rounding in float32 alone moves scores by 0.0001.
_LEAST_EFFECT: Final = 0.001
# In nats, on average: engines in float32 that multiply adapters by another order of sums, or by
# tensor cores that read fewer bits.
_LEAST_NOISE: Final = 0.001

_TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
_Logprob = Annotated[float, Meta(ge=_LOWEST_LOGPROB, le=0)]
_PromptLength = Meta(min_length=2, max_length=MOST_PROMPT_TOKENS)
_ScoresLength = Meta(min_length=1, max_length=MOST_PROMPT_TOKENS - 1)


class ScoredPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt, and the natural-log probability of each of its tokens but the first: with the
    adapter, and of the base model alone. Raises ValueError for scores that are no
    log-probabilities, such as NaN.
    """

    token_ids: Annotated[tuple[_TokenId, ...], _PromptLength]
    adapter: Annotated[tuple[_Logprob, ...], _ScoresLength]
    base: Annotated[tuple[_Logprob, ...], _ScoresLength]

    def __post_init__(self) -> None:
        expected = len(self.token_ids) - 1
        if not len(self.adapter) == len(self.base) == expected:
            raise ValueError(
                f"{len(self.token_ids)} token_ids need {expected} log-probabilities of the adapter "
                f"and of the base, not {len(self.adapter)} and {len(self.base)}"
            )
        # Decoding has seen to this already; what is made of a model's own scores has not.
        for score in (*self.adapter, *self.base):
            if not _LOWEST_LOGPROB <= score <= 0:
                raise ValueError(
                    f"{score} is no log-probability; it has to be a number between "
                    f"{_LOWEST_LOGPROB:g} and 0"
                )


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far what is served may be from the reference: the mean absolute difference of
    log-probabilities, at most ``nats`` plus ``share`` of the adapter's own mean effect.

    Rounding has both parts: one that the base model has alone, and one that grows with what the
    adapter does. The mean is judged since single tokens go far astray by mere rounding (1.4 nats),
    and since a fitted scale says little: a trained adapter's effect saturates, and served at twice
    its scale a least-squares fit still found 1.01.

    The defaults were measured with SmolLM2-135M. Mean differences from a float32 reference, in
    nats, of two trained adapters on chats of their own and on other text, and of a random one:

    ================  ======  ========  =========  =======  ==========  =======
    adapter, prompts  effect  bfloat16  scale 0.9  scale ½  scale 1/√r  allowed
    ================  ======  ========  =========  =======  ==========  =======
    support, own        3.46     0.084      0.236     1.17        1.63    0.204
    support, other      1.01     0.046      0.160     0.61        0.74    0.130
    router, own         2.25     0.051      0.164     0.67        0.87    0.167
    router, other       0.76     0.050      0.131     0.50        0.59    0.123
    random, own         0.38     0.059      0.046     0.21        0.30    0.111
    ================  ======  ========  =========  =======  ==========  =======

    So rounding has twice its room, half the scale is at twice what is allowed or beyond, and a
    tenth is at the edge. Twice the scale gave 0.6 to 3.8, another base model of the same shapes 0.8
    to 1.3, float16 under 0.01. What is not seen in bfloat16 is a single matrix that is missing (up
    to 0.015); a whole layer is at the edge (0.08 to 0.20). Engines with less noise see more, since
    what they are allowed is measured (`Reference.allowed_at`): on eight prompts the base model
    alone differed by 0.051 in bfloat16, 0.00001 in float32 and 0.117 with weights of 8 bits, and
    five adapters by 0.056 to 0.061, 0.00001 and 0.15 to 0.18.
    """

    nats: Annotated[float, Meta(gt=0, le=100)] = 0.1
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.03

    def allowed_of(self, effect: float) -> float:
        """The largest mean difference, in nats, that passes an adapter of this mean effect."""
        return self.nats + self.share * effect


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts on which the adapter does what it was trained for, scored in ``dtype``.

    Raises ValueError for scores by which the adapter could not be told from the base model.
    """

    prompts: Annotated[tuple[ScoredPrompt, ...], Meta(min_length=1, max_length=MOST_PROMPTS)]
    dtype: Dtype = "float32"
    tolerance: Tolerance = Tolerance()

    def __post_init__(self) -> None:
        if not self.effect >= _LEAST_EFFECT:
            raise ValueError(
                "the scores of the adapter and of the base are the same (they differ by "
                f"{self.effect:.2g} nats on average), so the adapter could not be told from the "
                "base model by them; score prompts on which it changes what is said, with the "
                "adapter and without, or leave the reference out"
            )

    @property
    def adapter(self) -> list[float]:
        return [score for prompt in self.prompts for score in prompt.adapter]

    @property
    def base(self) -> list[float]:
        return [score for prompt in self.prompts for score in prompt.base]

    @property
    def effect(self) -> float:
        """By how many nats the adapter moves a token's log-probability, on average."""
        return mean_difference(self.adapter, self.base)

    @property
    def allowed(self) -> float:
        """The largest mean difference, in nats, that passes on any engine."""
        return self.tolerance.allowed_of(self.effect)

    def allowed_at(self, noise: float, room: float = 1.0) -> float:
        """The same on an engine whose base model alone differs by ``noise`` from the reference's:
        twice that, growing with the adapter's effect as the tolerance does, and never more than
        ``room`` times the tolerance, since another base model differs as well. What the publisher
        has stated in its place stands as it is.
        """
        tolerance = self.tolerance
        if tolerance != Tolerance():
            return self.allowed
        growth = tolerance.allowed_of(self.effect) / tolerance.nats
        return min(room * self.allowed, 2 * max(noise, _LEAST_NOISE) * growth)


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The mean absolute difference, in nats."""
    return fmean(differences(ours, theirs))


def differences(ours: Iterable[float], theirs: Iterable[float]) -> Iterator[float]:
    return (abs(one - other) for one, other in zip(ours, theirs, strict=True))
