"""The life of a version: its states, and the one table of the moves between them.

::

    PUBLISHED ─▶ LOADING ─▶ READY ─▶ DRAINING ─▶ PUBLISHED or RETIRED
                    └─▶ FAILED

A state says where a version stands in the server that serves it. Which version an alias means is
another matter, see `aliases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from loragate.adapters.errors import IllegalMove


class AdapterState(StrEnum):
    """Where a version stands."""

    PUBLISHED = "PUBLISHED"
    """Stored, and in no engine."""
    LOADING = "LOADING"
    """A server is loading and checking it."""
    READY = "READY"
    """In the engine, and checked."""
    DRAINING = "DRAINING"
    """Its last requests are ending; then it leaves the engine."""
    RETIRED = "RETIRED"
    """Out of service for good."""
    FAILED = "FAILED"
    """It could not be loaded or did not pass a check; the reason is kept."""


_PUBLISHED, _LOADING, _READY = AdapterState.PUBLISHED, AdapterState.LOADING, AdapterState.READY
_DRAINING, _RETIRED, _FAILED = AdapterState.DRAINING, AdapterState.RETIRED, AdapterState.FAILED

LEGAL_MOVES: Final[Mapping[AdapterState, tuple[AdapterState, ...]]] = MappingProxyType(
    {
        _PUBLISHED: (_LOADING, _RETIRED),
        # PUBLISHED from LOADING, READY or DRAINING: unloaded, or the server started anew.
        _LOADING: (_READY, _FAILED, _PUBLISHED),
        # LOADING from READY: the engine started anew.
        _READY: (_DRAINING, _LOADING, _PUBLISHED),
        # READY from DRAINING: asked for again before it had left.
        _DRAINING: (_PUBLISHED, _READY, _RETIRED),
        # PUBLISHED from FAILED: promoted again, so it is to be tried again.
        _FAILED: (_LOADING, _PUBLISHED, _RETIRED),
        _RETIRED: (),
    }
)

IN_ENGINE: Final = frozenset({_LOADING, _READY, _DRAINING})
"""The states in which an engine may hold the version, so that its files must stay."""


def move(current: AdapterState, wanted: AdapterState) -> AdapterState:
    """The state after the move. Raises IllegalMove for one that the table does not have."""
    legal = LEGAL_MOVES[current]
    if wanted not in legal:
        raise IllegalMove(current, wanted, legal)
    return wanted
