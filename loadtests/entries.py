"""Samples as Locust's own entries: for its page, its console table and its CSV files.

The name is tenant and adapter, the type protocol and quantity. An answer that misses an objective
is a failure of `goodput`; one that never came whole, of `e2e`.
"""

from locust.env import Environment

from loadtests.measures import Objectives, missed
from loadtests.records import Sample


class MissedObjective(Exception):
    """An answer that came whole, but too late by the objective that it names."""


class NoAnswer(Exception):
    """An answer that did not come whole; says how it ended."""


class Entries:
    def __init__(self, environment: Environment, objectives: Objectives) -> None:
        self._fire = environment.events.request.fire
        self._objectives = objectives

    def add(self, sample: Sample) -> None:
        if sample.outcome == "left":
            return  # its times are those of this client
        if sample.outcome != "ok":
            what = NoAnswer(f"{sample.outcome}: {sample.status} {sample.code}".strip())
            self._enter(sample, "e2e", sample.e2e_seconds, what)
            self._enter(sample, "goodput", sample.e2e_seconds, what)
            return
        for gap in sample.gaps_seconds:
            self._enter(sample, "itl", gap)
        if (ttft := sample.ttft_seconds) is not None:
            self._enter(sample, "ttft", ttft)
        if (tpot := sample.tpot_seconds) is not None:
            self._enter(sample, "tpot", tpot)
        self._enter(sample, "e2e", sample.e2e_seconds)
        late = missed(sample, self._objectives)
        why = MissedObjective(f"missed {', '.join(late)}") if late else None
        self._enter(sample, "goodput", sample.e2e_seconds, why)

    def _enter(
        self, sample: Sample, quantity: str, seconds: float, exception: Exception | None = None
    ) -> None:
        name = sample.adapter
        if "/" not in name:
            name = f"{sample.tenant}/{name}"
        self._fire(
            request_type=f"{sample.protocol} {quantity}",
            name=name,
            response_time=seconds * 1000,
            response_length=sample.output_tokens,
            exception=exception,
            context={},
        )
