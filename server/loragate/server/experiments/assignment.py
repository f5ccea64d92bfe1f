"""Who gets which arm: the same unit always the same one, without anything being remembered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from loragate.server.errors import InvalidRequest
from loragate.server.experiments.plan_bounds import SMALLEST_SHARE

UnitKind = Literal["user", "conversation", "key"]
_MOST = 1 << 53  # as many buckets as floats in [0, 1) can tell apart
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Unit:
    """Who an arm is given to, and whose requests count as one observation.

    `kind` says what it was taken from; a tenant whose requests name no user and no conversation is
    as many units as it has keys, and that is too few for most conclusions.
    """

    kind: UnitKind
    value: str

    def digest(self, salt: str) -> str:
        """16 hexadecimal digits to keep in place of a user's name; another salt, another digest."""
        return _hash(salt, self).hex()


def unit_of(user: str | None, conversation: str | None, key: str) -> Unit:
    """The request's `user`, else its conversation header, else the id of its API key."""
    if user:
        return Unit("user", user)
    if conversation:
        return Unit("conversation", conversation)
    return Unit("key", key)


def bucket(salt: str, unit: Unit) -> float:
    """In [0, 1): evenly spread over units, unrelated between salts.

    Each rollout and each experiment has a salt of its own, and its shadow another: else whoever is
    first in one were first in all.
    """
    return (int.from_bytes(_hash(salt, unit)) >> 11) / _MOST


def _hash(salt: str, unit: Unit) -> bytes:
    return blake2b(f"{salt}\0{unit.kind}\0{unit.value}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Split:
    """Arms side by side on [0, 1), each as wide as its share.

    An arm that grows at the cost of those after it loses nobody, nor does any before it: a
    rollout's challenger comes first. Raises InvalidRequest unless names differ and shares are
    positive and add up to 1.
    """

    arms: tuple[str, ...]
    ends: tuple[float, ...]

    @classmethod
    def of(cls, shares: Sequence[tuple[str, float]]) -> "Split":
        names = tuple(name for name, _ in shares)
        if len(set(names)) < len(names):
            raise InvalidRequest(
                f"The arms {', '.join(names)} are not all different; rename one.", param="arms"
            )
        for name, share in shares:
            if not SMALLEST_SHARE <= share <= 1:
                raise InvalidRequest(
                    f"Arm '{name}' has the share {share:g}; give it at least {SMALLEST_SHARE:g} "
                    "and at most 1.",
                    param="arms",
                )
        total = math.fsum(share for _, share in shares)
        if abs(total - 1) > _TOLERANCE:
            raise InvalidRequest(
                f"The arms' shares add up to {total:g}; change them so that they add up to 1.",
                param="arms",
            )
        ends = [math.fsum(share for _, share in shares[: i + 1]) for i in range(len(shares))]
        return cls(names, (*ends[:-1], 1.0))

    def arm(self, bucket: float) -> str:
        for name, end in zip(self.arms, self.ends, strict=True):
            if bucket < end:
                return name
        raise ValueError(f"{bucket} is not a bucket; they are in [0, 1)")


def is_in(bucket: float, share: float) -> bool:
    """Whether a rollout's challenger, at this share, answers. Who is in stays in as it grows."""
    return bucket < share
