"""How many more units it would take, roughly, if things stay as they look."""

import math
from collections.abc import Callable

from loragate.server.experiments.confidence_sequences import (
    LEAST_UNITS,
    Interval,
    ShareBet,
)

MOST_UNITS = 10_000_000


def shrinking(seen: Interval, reach: float, gap: float) -> int | None:
    """Units in all until a limit that is `reach` away from the estimate is only `gap` away: limits
    close in with the root of the number of units. None where no number of units will do.
    """
    if gap <= 0 or not math.isfinite(reach):
        return None
    units = seen.units * (reach / gap) ** 2
    return math.ceil(units) if units < MOST_UNITS else None


def for_share(observed: float, bound: float, alpha: float) -> int | None:
    """Units in all until a share that is `observed` is known to be on its side of the bound."""
    if observed == bound:
        return None
    bet, needed = ShareBet(bound), math.log(1 / alpha)
    return _first(lambda units: float(bet.fortune(observed * units, units, bound)) >= needed)


def for_any_limit(level: float | None, is_upper: bool, alpha: float) -> int:
    """Units in all before there is a limit on this side at all."""
    if level is None:
        return LEAST_UNITS
    bet, needed = ShareBet(level), math.log(1 / alpha)
    first = _first(
        lambda units: float(bet.fortune(units if is_upper else 0.0, units, level)) >= needed
    )
    return first or MOST_UNITS


def _first(is_enough: Callable[[int], bool]) -> int | None:
    """The smallest number of units from which on it is enough."""
    high = 1
    while not is_enough(high):
        high *= 2
        if high > MOST_UNITS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
