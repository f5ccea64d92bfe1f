"""What benchmarks of speed ask of a server, and how they write down what they found."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.servers import Running
from bench.streams import Door

ANSWER_TOKENS = 64
Results = dict[str, list[float]]  # by what was measured, one of each round


@dataclass(frozen=True, slots=True)
class Case:
    """So many streams at once over so many adapters; 0 is the base model."""

    adapters: int
    streams: int
    prompt_tokens: int = 32

    @property
    def name(self) -> str:
        who = {0: "base", 1: "one adapter"}.get(self.adapters, f"{self.adapters} adapters")
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{who}, {streams}, prompts of {self.prompt_tokens}"

    @property
    def speed(self) -> str:
        return f"tokens/s: {self.name}"

    @property
    def first_token(self) -> str:
        return f"first token p50, s: {self.name}"

    @property
    def between_tokens(self) -> str:
        return f"between tokens p50, ms: {self.name}"

    def doors(self, running: Running) -> list[Door]:
        names = [f"adapter{i}" for i in range(self.adapters)] or ["base"]
        return [running.doors[name] for name in names]


def spread(values: Sequence[float]) -> str:
    """The median, and the least and most."""
    median = statistics.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
