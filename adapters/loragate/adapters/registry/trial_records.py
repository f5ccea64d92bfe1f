"""What the registry says of rollouts and experiments: plain values, read once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.merged_states import Mode

TrialKind = Literal["rollout", "experiment"]
ArmMode = Mode


@dataclass(frozen=True, slots=True)
class NewArm:
    """An arm to be: a version by its number, or None for the base model. ``share`` is of the units;
    a rollout's steps say theirs.
    """

    name: str
    number: int | None
    mode: ArmMode = "unmerged"
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm of a trial; without a version, the base model."""

    id: int
    name: str
    version: AdapterVersion | None
    mode: ArmMode
    share: float


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """Where a trial stands. ``watched_seconds`` are those at the present step; ``reason`` is why it
    is in its state.
    """

    state: str
    step: int = 0
    watched_seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollout or an experiment. ``plan`` and ``status.state`` are the server's words."""

    id: int
    kind: TrialKind
    adapter: AdapterName
    salt: str
    plan: str
    arms: tuple[Arm, ...]
    status: TrialStatus
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    def arm(self, name: str) -> Arm:
        """Raises KeyError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class ExposureRow:
    """A request that an arm was chosen for. ``id`` is the server's own, since a client may choose
    one request id twice.
    """

    id: str
    arm_id: int
    step: int
    tenant: str
    request_id: str
    unit: str
    unit_kind: str
    at: datetime


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """How it ended. ``is_fallback``: another arm answered."""

    exposure_id: str
    at: datetime
    is_fallback: bool
    failed: bool
    duration_seconds: float
    completion_tokens: int
    ttft_seconds: float | None
    itl_seconds: float | None


@dataclass(frozen=True, slots=True)
class ShadowRow:
    """An answer beside that of a second arm, ``arm_id``, which the client never saw. The first
    ``same_tokens`` are equal; the texts are cut short. ``seconds`` are those of the second answer.
    """

    exposure_id: str
    arm_id: int
    step: int
    at: datetime
    answered_by: str
    is_greedy: bool
    same_tokens: int
    tokens: int
    shadow_tokens: int
    seconds: float
    text: str
    shadow_text: str

    @property
    def is_same(self) -> bool:
        return self.same_tokens == self.tokens == self.shadow_tokens


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """What somebody thought of an answer; a comment has no value. ``exposure_id`` is None where no
    trial had taken the request.
    """

    tenant: str
    request_id: str
    metric: str
    value: float | None
    comment: str
    exposure_id: str | None
    at: datetime
