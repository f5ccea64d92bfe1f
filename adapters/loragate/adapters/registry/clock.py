"""The one place that asks what time it is, for what is written down."""

from collections.abc import Callable
from datetime import UTC, datetime

WallClock = Callable[[], datetime]
"""Passed in where a test has another time."""


def wall_clock() -> datetime:
    """Now, in UTC: every moment in the registry has its zone."""
    return datetime.now(UTC)
