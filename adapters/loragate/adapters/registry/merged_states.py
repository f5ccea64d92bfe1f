"""How far a server has come with a merged model, and by which of the two a version answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

Mode = Literal["unmerged", "merged"]
"""How a version answers: beside the base model, or by its merged model in an engine of its own."""


def as_mode(text: str) -> Mode:
    return "merged" if text == "merged" else "unmerged"


class MergedState(StrEnum):
    """Where the serving of a merged model stands."""

    WAITING = "WAITING"
    """Asked for; no server has taken it up yet."""
    MAKING = "MAKING"
    """A server is merging, since there was no merged model."""
    STARTING = "STARTING"
    """Its engine is starting."""
    SERVING = "SERVING"
    """Its engine answers."""
    RESTARTING = "RESTARTING"
    """Its engine has died, and another one is starting."""
    STOPPING = "STOPPING"
    """No longer wanted; its last requests are ending."""
    REFUSED = "REFUSED"
    """There is no room for it; the reason has the figures."""
    FAILED = "FAILED"
    """It could not be made or started; the reason is kept."""


AT_REST: Final = frozenset({MergedState.WAITING, MergedState.REFUSED, MergedState.FAILED})
"""The states in which no engine runs and none is on its way."""


@dataclass(frozen=True, slots=True)
class MergedStatus:
    """``since`` is when it was asked for, None for one that is no longer wanted."""

    since: datetime | None
    state: MergedState
    reason: str = ""

    @property
    def is_wanted(self) -> bool:
        return self.since is not None
