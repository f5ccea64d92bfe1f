"""How fast a model answers: so many streams at once, by the clock of a client beside the server."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loragate.server.comparison.asking import ComparisonClient, Target, Timed


@dataclass(frozen=True, slots=True)
class Speed:
    """Of `streams` at once; times in seconds, medians over all of them."""

    streams: int
    tokens_per_second: float
    ttft: float
    ttft_p95: float
    inter_token: float


async def measure(
    client: ComparisonClient,
    target: Target,
    prompts: Sequence[Sequence[int]],
    streams: int,
    tokens: int,
    round_: int,
) -> list[Timed]:
    """`streams` at once, each with another of the prompts, or one that comes again."""
    asked = (prompts[(round_ * streams + index) % len(prompts)] for index in range(streams))
    return await asyncio.gather(*(client.stream(target, prompt, tokens) for prompt in asked))


def speed_of(streams: int, runs: Sequence[Sequence[Timed]]) -> Speed:
    """Over several runs: the median of their rates, and of all their streams' times."""
    answers = [timed for run in runs for timed in run]
    firsts = sorted(timed.arrivals[0] for timed in answers)
    return Speed(
        streams,
        statistics.median(map(_rate, runs)),
        statistics.median(firsts),
        firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
        statistics.median(gap for timed in answers for gap in timed.gaps),
    )


def _rate(run: Sequence[Timed]) -> float:
    tokens = sum(len(timed.arrivals) for timed in run)
    began = min(timed.began for timed in run)
    return tokens / (max(timed.began + timed.arrivals[-1] for timed in run) - began)
