"""What one arm has shown: exposures and outcomes, counted by unit.

One user's requests are alike, so a user who asks a hundred times is not a hundred observations. A
unit counts once: as the first few values that it gave, and then never changes. That is what makes
the units a sequence of independent observations, and looking at every one of them harmless; a mean
over all that a unit has given *so far* would move after it was looked at.
"""

import heapq
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loragate.server.experiments.assignment import UnitKind

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class UnitRule:
    """When a unit counts: at its `values`-th value, or where it gives fewer, once `window_seconds`
    have passed since its first request. What it gives later is not looked at.
    """

    values: int = 1
    window_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of one metric, with the unit that gave each: 0, 1, … in the order in which they
    counted.
    """

    values: Floats
    units: npt.NDArray[np.int64]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Sample":
        """One value a unit."""
        given = np.fromiter(values, np.float64)
        return cls(given, np.arange(len(given)))

    @property
    def size(self) -> int:
        """How many units."""
        return int(self.units[-1]) + 1 if len(self.units) else 0

    def first(self, units: int) -> "Sample":
        """What there was when so many units had counted."""
        end = int(np.searchsorted(self.units, units))
        return Sample(self.values[:end], self.units[:end])

    def means(self) -> Floats:
        """The mean of each unit, in order."""
        return np.bincount(self.units, self.values) / np.bincount(self.units)

    def weights(self) -> Floats:
        """A unit weighs 1, however many values it gave."""
        return 1.0 / np.bincount(self.units)[self.units]


NOTHING = Sample.of(())


@dataclass(frozen=True, slots=True)
class ArmTally:
    """An arm at one moment. `share` is what it was to get of the units; `unit_kinds` what these
    were taken from. `fallbacks` of its requests were answered by another arm: they are in no
    sample, or an arm that is dead would look healthy.
    """

    name: str
    share: float
    units: int = 0
    requests: int = 0
    fallbacks: int = 0
    unit_kinds: Mapping[UnitKind, int] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)

    def sample(self, metric: str) -> Sample:
        return self.samples.get(metric, NOTHING)


class _Counted:
    """The values of one metric of units that count."""

    def __init__(self) -> None:
        self.values = array("d")
        self.units = array("q")
        self.size = 0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self.values.append(value)
            self.units.append(self.size)
        self.size += 1

    def sample(self) -> Sample:
        return Sample(np.array(self.values), np.array(self.units, np.int64))


class Tally:
    """Counts one arm. To be fed in the order of time, so that feeding it what was kept, after a
    restart, comes to the same. `at` is in seconds on any one clock; a clock that is set back only
    keeps units open for longer.
    """

    def __init__(self, rule: UnitRule) -> None:
        self._rule = rule
        self._requests = 0
        self._fallbacks = 0
        self._kinds: dict[UnitKind, int] = {}
        self._deadlines: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []
        self._open: dict[str, dict[str, list[float]]] = {}
        self._counted: dict[str, _Counted] = {}

    @property
    def units(self) -> int:
        return len(self._deadlines)

    def expose(self, unit: str, kind: UnitKind, at: float, *, takes_new: bool = True) -> None:
        """A request of the unit was admitted to this arm. One that is new is passed over unless
        `takes_new`, but its request is counted.
        """
        self._requests += 1
        self.begin(unit, kind, at, takes_new=takes_new)

    def count_all(self, requests: int, fallbacks: int) -> None:
        """Adds so many of before; those that matter otherwise come by `begin` and `observe`."""
        self._requests += requests
        self._fallbacks += fallbacks

    def begin(self, unit: str, kind: UnitKind, at: float, *, takes_new: bool = True) -> None:
        """As `expose`, of a request that is counted already."""
        self._close_due(at)
        if unit in self._deadlines or not takes_new:
            return
        deadline = at + self._rule.window_seconds
        self._deadlines[unit] = deadline
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        heapq.heappush(self._due, (deadline, unit))
        self._open[unit] = {}

    def fall_back(self) -> None:
        """A request of this arm was answered by another one; it gives no values."""
        self._fallbacks += 1

    def observe(self, unit: str, metric: str, value: float, at: float) -> None:
        """A value of a unit. One that was never exposed, or is closed, adds nothing."""
        self._close_due(at)
        metrics = self._open.get(unit)
        if metrics is None:
            return
        values = metrics.setdefault(metric, [])
        if len(values) < self._rule.values:
            values.append(value)
            if len(values) == self._rule.values:
                self._count(metric, values)

    def at(self, name: str, share: float, now: float) -> ArmTally:
        """As of now."""
        self._close_due(now)
        samples = {metric: counted.sample() for metric, counted in self._counted.items()}
        return ArmTally(
            name,
            share,
            self.units,
            self._requests,
            self._fallbacks,
            dict(self._kinds),
            samples,
        )

    def _close_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, unit = heapq.heappop(self._due)
            for metric, values in self._open.pop(unit).items():
                if len(values) < self._rule.values:
                    self._count(metric, values)

    def _count(self, metric: str, values: list[float]) -> None:
        self._counted.setdefault(metric, _Counted()).add(values)
