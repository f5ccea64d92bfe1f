"""One comparison, from its first prompt to its recommendation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loragate.server.comparison.agreement import Agreement, agree, diverge
from loragate.server.comparison.asking import Answered, ComparisonClient, Scores, Target, Timed
from loragate.server.comparison.prompts import Conversation
from loragate.server.comparison.speed import Speed, measure, speed_of
from loragate.server.engine.memory import gib

# The bounds that a merge in bfloat16 is proved by, see the trainer's `merging`.
_MOST_KL = 5e-3
_LEAST_SAME = 0.97
_WORTH = 1.1  # less than this is not told from noise
Tell = Callable[[str], None]
Costs = tuple[tuple[int, str], tuple[int, str], tuple[int, str]]
"""Of base, unmerged and merged: bytes of memory, and what these are."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is asked: tokens an answer, alternatives a position (the engine's
    `engine.max_logprobs` bounds them), streams at once, and how often each is measured.
    """

    tokens: int = 48
    top: int = 20
    streams: tuple[int, ...] = (1, 8)
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Measurement:
    """One of the three. `memory_bytes` is what it costs beside what the others need."""

    name: str
    speeds: tuple[Speed, ...]
    memory_bytes: int
    memory_words: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """`merged` is the merged model beside the version, `base` the base model beside it: how much
    the adapter does at all.
    """

    version: str
    prompts: int
    settings: Settings
    merged: Agreement
    base: Agreement
    measured: tuple[Measurement, Measurement, Measurement]

    @property
    def gains(self) -> tuple[tuple[int, float], ...]:
        """Streams at once, and how many times the version's tokens a second are the merged's."""
        _, unmerged, merged = self.measured
        return tuple(
            (one.streams, other.tokens_per_second / one.tokens_per_second)
            for one, other in zip(unmerged.speeds, merged.speeds, strict=True)
        )

    @property
    def says_the_same(self) -> bool:
        return self.merged.mean_kl <= _MOST_KL and self.merged.same_top >= _LEAST_SAME

    @property
    def _sameness(self) -> str:
        same, all_ = self.merged.same_answers, len(self.merged.divergences)
        rest = "" if same == all_ else "; the others part where two tokens are nearly as likely"
        return f"Of {all_} greedy answers, {same} are the same to the last token{rest}."

    @property
    def recommendation(self) -> str:
        merged = self.measured[2]
        if not self.says_the_same:
            return (
                f"Serve it unmerged. The merged model says something else: the same likeliest "
                f"token at {self.merged.same_top:.1%} of the positions (needed are "
                f"{_LEAST_SAME:.0%}), a mean KL divergence of {self.merged.mean_kl:.2g} nats "
                f"(allowed are {_MOST_KL:g}). Merge in a wider dtype and compare again."
            )
        gains = " and ".join(f"{gain:.2f} times at {_streams(n)}" for n, gain in self.gains)
        cost = f"{gib(merged.memory_bytes)} of memory, a whole model for one version"
        sentence = f"Merged, its tokens a second are {gains}, for {cost}."
        if max(gain for _, gain in self.gains) < _WORTH:
            return (
                f"Serve it unmerged. {sentence} That is no gain worth the memory. {self._sameness}"
            )
        return f"Merging pays where this tenant's load is worth it. {sentence} {self._sameness}"


def _streams(count: int) -> str:
    return "one stream" if count == 1 else f"{count} streams"


async def compare(
    client: ComparisonClient,
    version: str,
    targets: tuple[Target, Target, Target],
    prompts: Sequence[Conversation],
    settings: Settings,
    memory: Callable[[], Costs],
    tell: Tell,
) -> Comparison:
    """`targets` are base, unmerged and merged. Raises ComparisonFailed."""
    base, unmerged, merged = targets
    tell(f"asking {len(prompts)} prompts of each")
    answers = {
        target: [await client.answer(target, prompt, settings.tokens) for prompt in prompts]
        for target in targets
    }
    tell("scoring the version's answers by each")
    scores = {
        target: await _scores(client, target, answers[unmerged], settings.top) for target in targets
    }
    merged_agrees, base_agrees = (
        agree(
            [
                diverge(one.token_ids, other.token_ids)
                for one, other in zip(answers[unmerged], answers[target], strict=True)
            ],
            scores[unmerged],
            scores[target],
        )
        for target in (merged, base)
    )
    asked = [answer.prompt_ids for answer in answers[unmerged]]
    speeds = await _speeds(client, targets, asked, settings, tell)
    costs = memory()
    measured = [
        Measurement(target.name, speeds[target], *cost)
        for target, cost in zip(targets, costs, strict=True)
    ]
    return Comparison(
        version,
        len(prompts),
        settings,
        merged_agrees,
        base_agrees,
        (measured[0], measured[1], measured[2]),
    )


async def _scores(
    client: ComparisonClient, target: Target, answers: Sequence[Answered], top: int
) -> list[Scores]:
    """At the positions of the answers, each given all before it."""
    found: list[Scores] = []
    for answer in answers:
        positions = await client.score(target, answer.prompt_ids + answer.token_ids, top)
        found += positions[-len(answer.token_ids) :]
    return found


async def _speeds(
    client: ComparisonClient,
    targets: Sequence[Target],
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    tell: Tell,
) -> dict[Target, tuple[Speed, ...]]:
    speeds: dict[Target, tuple[Speed, ...]] = dict.fromkeys(targets, ())
    for target in targets:  # what is slow the first time only
        await measure(client, target, prompts, max(settings.streams), 4, round_=0)
    for streams in settings.streams:
        tell(f"timing {_streams(streams)} at once of each")
        runs: dict[Target, list[list[Timed]]] = {target: [] for target in targets}
        for round_ in range(settings.rounds):  # in turns: whatever else the machine does meets all
            for target in targets:
                run = await measure(client, target, prompts, streams, settings.tokens, round_)
                runs[target].append(run)
        for target in targets:
            speeds[target] += (speed_of(streams, runs[target]),)
    return speeds
