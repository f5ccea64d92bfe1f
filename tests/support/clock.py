"""A clock that a test moves."""

import asyncio
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Time that passes only while someone sleeps, or when the test says so."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
