"""What a rollout or an experiment may ask for, whoever asks: HTTP, gRPC, the command line, or a
plan that the registry has kept.

A comparison with a bound is false for NaN, so each is written as what has to hold.
"""

from collections.abc import Sized
from typing import Final

from loragate.server.errors import InvalidRequest

MOST_STEPS: Final = 100
MOST_ARMS: Final = 20
MOST_GATES: Final = 20
MOST_VALUES: Final = 1000
LONGEST_GATE: Final = 200  # characters
LONGEST_REASON: Final = 1000  # characters
SMALLEST_SHARE: Final = 1e-6
"""An arm that gets less shows nothing in a lifetime, and figures divide by shares."""
SMALLEST_ALPHA: Final = 1e-6
"""It is divided by gates, steps and arms, and its inverse is taken."""
SMALLEST_BOUND: Final = 1e-9
LARGEST_BOUND: Final = 1e9
SHORTEST_SECONDS: Final = 0.001
LONGEST_SECONDS: Final = 366 * 24 * 3600.0


def check_count(items: Sized, most: int, what: str, param: str) -> None:
    """Raises InvalidRequest for too many."""
    if len(items) > most:
        raise InvalidRequest(f"{len(items)} {what} are too many; give {most} at most.", param=param)


def check_gates(gates: Sized) -> None:
    """Raises InvalidRequest for too many."""
    check_count(gates, MOST_GATES, "gates", "gates")


def check_seconds(seconds: float, what: str, param: str) -> None:
    """Raises InvalidRequest for a time that is none, or that nobody lives to see."""
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise InvalidRequest(
            f"{what} of {seconds:g} s cannot be; give between {SHORTEST_SECONDS:g} s and 366 days.",
            param=param,
        )


def check_shadow(share: float) -> None:
    """Raises InvalidRequest."""
    if not 0 <= share <= 1:
        raise InvalidRequest("The share of requests to shadow is from 0 to 100 %.", param="shadow")


def check_alpha(alpha: float) -> None:
    """Raises InvalidRequest."""
    if not SMALLEST_ALPHA <= alpha < 0.5:
        raise InvalidRequest(
            f"alpha is a probability of error, {SMALLEST_ALPHA:g} or more and under 0.5.",
            param="alpha",
        )


def check_values(values: int) -> None:
    """Raises InvalidRequest."""
    if not 1 <= values <= MOST_VALUES:
        raise InvalidRequest(
            f"{values} values of a unit cannot count; give 1 to {MOST_VALUES}.", param="values"
        )


def check_reason(why: str) -> None:
    """Raises InvalidRequest."""
    if len(why) > LONGEST_REASON:
        raise InvalidRequest(
            f"The reason has {len(why)} characters; {LONGEST_REASON} are allowed.", param="reason"
        )
