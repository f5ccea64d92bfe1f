"""How long the parts of a run took, as a user waited for them."""

import time
from dataclasses import dataclass, field

from loragate.trainer.run.durations import duration


@dataclass
class Phases:
    """Each phase lasts from the end of the one before it."""

    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _mark: float = field(default_factory=time.monotonic, init=False)

    def end(self, name: str) -> None:
        """The phase that is over; one that was there before is added to."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    @property
    def sentence(self) -> str:
        """`Data 6 s, training 2 min 05 s, evaluation 58 s: 3 min 09 s in all.`"""
        parts = ", ".join(f"{name} {duration(each)}" for name, each in self.seconds.items())
        return f"{parts[:1].upper()}{parts[1:]}: {duration(sum(self.seconds.values()))} in all."
