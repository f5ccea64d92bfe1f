"""Did the arms fill as they should? If not, something loses or moves units, and no comparison of
what is left can be trusted.

The chi-squared test on units, as in A. Fabijan et al., "Diagnosing sample ratio mismatch in online
controlled experiments", KDD 2019. Looked at all the time it cries wolf now and then
(`bench/simulate.py` says how often); that only delays a verdict, and the cry ends when the counts
come back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chisquare

from loragate.server.experiments.tally import ArmTally

ALARM = 0.001
# Below it the distribution of the statistic is not chi-squared yet.
_LEAST_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """`p_value` is None while there are too few units to say."""

    p_value: float | None

    @property
    def is_mismatch(self) -> bool:
        return self.p_value is not None and self.p_value < ALARM


def sample_ratio(arms: Sequence[ArmTally]) -> SampleRatio:
    """Of the units that were exposed to each arm, whoever answered them."""
    units = np.array([arm.units for arm in arms], float)
    shares = np.array([arm.share for arm in arms])
    expected = units.sum() * shares / shares.sum()
    if len(arms) < 2 or expected.min() < _LEAST_EXPECTED:
        return SampleRatio(None)
    return SampleRatio(float(chisquare(units, expected).pvalue))
