"""Whether two models say the same: greedily, and token by token on the same text.

KL divergences come from the likeliest tokens that the engine reports, `top` of them: what only one
side reports is put together with all the rest into one more outcome, so each figure is a lower
bound, and close where the likeliest tokens hold nearly all of the probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loragate.server.comparison.asking import Scores

_LEAST = 1e-12  # a probability that rounding may have made 0


@dataclass(frozen=True, slots=True)
class Divergence:
    """One prompt, greedily: how many tokens of how many are the same from the beginning."""

    same_tokens: int
    tokens: int

    @property
    def is_none(self) -> bool:
        return self.same_tokens == self.tokens


@dataclass(frozen=True, slots=True)
class Agreement:
    """`positions` are those of answers, not of prompts. KL divergences are in nats."""

    divergences: tuple[Divergence, ...]
    positions: int
    same_top: float
    mean_kl: float
    largest_kl: float
    largest_difference: float
    kls: tuple[float, ...]

    @property
    def same_answers(self) -> int:
        return sum(divergence.is_none for divergence in self.divergences)

    @property
    def first_divergence(self) -> int | None:
        """The earliest position at which any answer differs, counted from 1."""
        return min(
            (each.same_tokens + 1 for each in self.divergences if not each.is_none), default=None
        )


def diverge(one: Sequence[int], other: Sequence[int]) -> Divergence:
    pairs = enumerate(zip(one, other, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    return Divergence(same, max(len(one), len(other)))


def agree(
    divergences: Sequence[Divergence], reference: Sequence[Scores], found: Sequence[Scores]
) -> Agreement:
    """`reference` and `found` are of the same positions of the same text."""
    pairs = list(zip(reference, found, strict=True))
    kls = [kl(p, q) for p, q in pairs]
    same = [max(p, key=p.__getitem__) == max(q, key=q.__getitem__) for p, q in pairs]
    gaps = [abs(p[token] - q[token]) for p, q in pairs for token in p.keys() & q.keys()]
    return Agreement(
        tuple(divergences),
        len(pairs),
        sum(same) / len(same),
        sum(kls) / len(kls),
        max(kls),
        max(gaps),
        tuple(kls),
    )


def kl(p: Scores, q: Scores) -> float:
    """Of the first against the second, over the tokens that both have and the rest as one."""
    common = p.keys() & q.keys()
    shares = [(math.exp(p[token]), math.exp(q[token])) for token in common]
    rest = [max(_LEAST, 1 - sum(side)) for side in zip(*shares, strict=True)] or [1.0, 1.0]
    return max(0.0, sum(a * math.log(a / b) for a, b in [*shares, tuple(rest)]))
