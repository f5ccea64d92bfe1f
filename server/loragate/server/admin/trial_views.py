"""Rollouts and experiments from outside: the JSON of `/admin/v1`, and of every `--json`.

What makes these of the server's own nouns is in `trial_shapes`, which takes a second to import.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from loragate.adapters.registry.trial_records import TrialKind
from loragate.server.admin.views import Request, View
from loragate.server.experiments.plan_bounds import (
    LONGEST_REASON,
    MOST_ARMS,
    MOST_GATES,
    MOST_STEPS,
)
from loragate.server.experiments.specs import Action, ExperimentSpec, RolloutSpec

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # not "5", not true
Switch = Annotated[bool, Field(strict=True)]
_ROLLOUT = RolloutSpec(to="")  # for what is usual
_EXPERIMENT = ExperimentSpec(arms=(), gates=())


class RolloutRequest(Request):
    """A rollout to begin: `steps` in percent; `shadow` a share from 0 to 1. Numbers are bounded by
    the plan that is made of them, whoever asks.
    """

    to: str = Field(examples=["v4"])
    steps: tuple[Number, ...] = Field(default=_ROLLOUT.percentages, max_length=MOST_STEPS)
    every_seconds: Number = _ROLLOUT.every_seconds
    gates: tuple[str, ...] = Field(
        default=_ROLLOUT.gates, max_length=MOST_GATES, examples=[["error_rate<1%"]]
    )
    alpha: Number = _ROLLOUT.alpha
    shadow: Number = _ROLLOUT.shadow
    merged: Switch = _ROLLOUT.is_merged

    def spec(self) -> RolloutSpec:
        return RolloutSpec(
            to=self.to,
            percentages=self.steps,
            every_seconds=self.every_seconds,
            gates=self.gates,
            alpha=self.alpha,
            shadow=self.shadow,
            is_merged=self.merged,
        )


class ExperimentRequest(Request):
    """An experiment to begin. Without shares, all arms get the same."""

    arms: tuple[str, ...] = Field(
        max_length=MOST_ARMS, examples=[["champion=v3:50%", "new=v4:50%"]]
    )
    gates: tuple[str, ...] = Field(max_length=MOST_GATES, examples=[["rating>=champion-0.1"]])
    alpha: Number = _EXPERIMENT.alpha
    values: int = Field(default=_EXPERIMENT.values, strict=True)
    window_seconds: Number = _EXPERIMENT.window_seconds
    shadow: Number = _EXPERIMENT.shadow
    automatic: Switch = _EXPERIMENT.is_automatic

    def spec(self) -> ExperimentSpec:
        return ExperimentSpec(
            arms=self.arms,
            gates=self.gates,
            alpha=self.alpha,
            values=self.values,
            window_seconds=self.window_seconds,
            shadow=self.shadow,
            is_automatic=self.automatic,
        )


class TrialChange(Request):
    """What to do with an adapter's newest trial, of this kind if one is named. `arm` is the one to
    promote, where there are several.
    """

    action: Action
    arm: str = ""
    kind: TrialKind | None = None
    reason: str = Field(default="", max_length=LONGEST_REASON)


class ArmView(View):
    """`share` is of the units, now."""

    name: str
    answers: str = Field(examples=["acme/support@v3", "base"])
    mode: str
    share: float


class TrialView(View):
    """A rollout or an experiment as it stands."""

    id: int
    kind: Literal["rollout", "experiment"]
    adapter: str
    state: str
    reason: str
    arms: tuple[ArmView, ...]
    gates: tuple[str, ...]
    steps: tuple[float, ...] = ()
    step: int = 0
    created_at: datetime
    ended_at: datetime | None = None


class ArmFiguresView(View):
    """What an arm was given at the present step."""

    name: str
    units: int
    unit_kinds: Mapping[str, int]
    requests: int
    fallbacks: int


class GateView(View):
    """What is known of a gate; null where there is nothing to say yet."""

    gate: str
    state: str
    estimate: float | None
    lower: float | None
    upper: float | None
    units: int
    missing: str
    more_units: int | None


class VerdictView(View):
    """What may be concluded of one challenger."""

    challenger: str
    decision: str
    reason: str
    missing: tuple[str, ...]
    sample_ratio_p: float | None
    gates: tuple[GateView, ...]


class ReportView(View):
    """A trial with its figures; `text` is for a terminal, with its colours, `html` one page."""

    trial: TrialView
    arms: tuple[ArmFiguresView, ...]
    verdicts: tuple[VerdictView, ...]
    text: str
    html: str
