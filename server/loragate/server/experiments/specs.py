"""What operators ask for, in their own words, whatever the transport: each default is here alone.

Imports little, since the command line needs it for `--help`.
"""

from dataclasses import dataclass
from typing import Final, Literal

Action = Literal["pause", "resume", "abort", "promote", "rollback", "decide"]
FEW_VALUES: Final = 5
"""A unit counts once it gave as many, or where it gives fewer after `FEW_VALUES_SECONDS`."""
FEW_VALUES_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """`to` is a version or an alias; `percentages` are the steps."""

    to: str
    percentages: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    every_seconds: float = 600.0
    gates: tuple[str, ...] = ()
    alpha: float = 0.05
    shadow: float = 0.0
    is_merged: bool = False


@dataclass(frozen=True, slots=True)
class ExperimentSpec:
    """`arms` as in `champion=v3:50%`, `merged=v3+merged:50%`, `plain=base:50%`; without a share,
    each gets the same. The one called champion is what serves now, or the base model.
    """

    arms: tuple[str, ...]
    gates: tuple[str, ...]
    alpha: float = 0.05
    values: int = FEW_VALUES
    window_seconds: float = FEW_VALUES_SECONDS
    shadow: float = 0.0
    is_automatic: bool = False
