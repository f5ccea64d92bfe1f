"""What the probe makes of an engine's log-probabilities."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.reference import Reference, ScoredPrompt, Tolerance
from loragate.adapters.names import AdapterVersion
from loragate.adapters.rendering.renderer import Renderer
from loragate.server.core import Delta, TokenLogprob
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter
from loragate.server.errors import MachineFault
from loragate.server.residency.probe import Probe
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.models.tokenizers import byte_tokenizer

ADAPTER = LoadedAdapter(AdapterVersion("acme", "support", 1, "sha256:1", 1), Path("/nowhere"))
IDS = (3, 1, 4, 1, 5, 9, 2, 6)
Score = Callable[[int], float]


def base(token: int) -> float:
    return -2.0 - token / 10


def effect(token: int) -> float:
    """What the adapter was trained to add, 1 nat at least."""
    return 1.0 + token / 10 if token % 2 else -1.0 - token / 10


def trained(token: int) -> float:
    return base(token) + effect(token)


@dataclass
class ScoringEngine(EchoEngine):
    """Scores tokens by one function without the adapter, and by another with it."""

    base: Score = base
    adapted: Score = trained
    tells_nothing: bool = False
    scored: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # of prompts, in tokens

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        score = self.base if request.adapter is None else self.adapted
        self.scored.append(request.adapter is not None)
        self.lengths.append(len(request.prompt_ids))
        entries = [
            None if self.tells_nothing else TokenLogprob("", token, score(token))
            for token in request.prompt_ids[1:]
        ]
        yield Delta(index=0, prompt_logprobs=(None, *entries), finish_reason="length")


def reference(*, ids: tuple[int, ...] = IDS, tolerance: Tolerance | None = None) -> Reference:
    scored = ids[1:]
    prompt = ScoredPrompt(ids, tuple(map(trained, scored)), tuple(map(base, scored)))
    return Reference((prompt, prompt), tolerance=tolerance or Tolerance())


async def refusal(engine: ScoringEngine, held_against: Reference | None) -> InvalidAdapter | None:
    probe = Probe(engine, Renderer(byte_tokenizer()))
    try:
        await probe.check(ADAPTER, held_against)
    except InvalidAdapter as refused:
        return refused
    return None


async def test_adapter_that_says_what_the_base_says_is_refused() -> None:
    refused = await refusal(ScoringEngine(adapted=base), None)

    assert refused is not None
    assert refused.code == "no_effect"


async def test_adapter_without_a_reference_needs_only_an_effect() -> None:
    assert await refusal(ScoringEngine(adapted=lambda token: base(token) - 0.5), None) is None


async def test_prompt_is_read_no_further_than_it_takes_to_see_an_effect() -> None:
    engine = ScoringEngine()
    assert await refusal(engine, None) is None
    whole, begun = engine.lengths
    assert begun < whole / 2


async def test_effect_that_only_the_last_tokens_show_is_seen() -> None:
    [prompt] = Probe(ScoringEngine(), Renderer(byte_tokenizer()))._prompts
    late = prompt[-1]
    assert late not in prompt[:6]
    engine = ScoringEngine(adapted=lambda token: base(token) + (1.0 if token == late else 0.0))
    assert await refusal(engine, None) is None
    assert engine.lengths == [len(prompt), 6, len(prompt)]


async def test_adapter_that_matches_its_reference_passes() -> None:
    assert await refusal(ScoringEngine(), reference()) is None


def rounded(token: int) -> float:
    return 0.05 if token % 2 else -0.05


async def test_rounding_up_to_twice_the_engines_own_passes() -> None:
    engine = ScoringEngine(
        base=lambda token: base(token) + rounded(token),
        adapted=lambda token: trained(token) + 1.9 * rounded(token),
    )

    assert await refusal(engine, reference()) is None


async def test_what_differs_by_more_than_twice_the_engines_own_noise_is_refused() -> None:
    engine = ScoringEngine(
        base=lambda token: base(token) + rounded(token) / 2,
        adapted=lambda token: trained(token) + 2 * rounded(token),
    )

    refused = await refusal(engine, reference())

    assert refused is not None
    assert "the tolerance is 0.07" in str(refused)


async def test_engine_without_noise_sees_a_single_matrix_that_is_missing() -> None:
    engine = ScoringEngine(adapted=lambda token: trained(token) + rounded(token) / 3)

    refused = await refusal(engine, reference())

    assert refused is not None
    assert refused.code == "reference_mismatch"


async def test_noise_is_never_allowed_beyond_the_tolerance() -> None:
    shift = 0.3  # of another base model, or a quantised one

    refused = await refusal(
        ScoringEngine(
            base=lambda token: base(token) - shift, adapted=lambda token: trained(token) - shift
        ),
        reference(),
    )

    assert refused is not None
    assert f"tolerance is {reference().allowed:.3f}" in str(refused)


async def test_quantised_base_model_may_differ_by_twice_its_own_noise() -> None:
    engine = ScoringEngine(
        base=lambda token: base(token) + 3 * rounded(token),
        adapted=lambda token: trained(token) + 5 * rounded(token),
    )
    assert await refusal(engine, reference()) is not None

    probe = Probe(engine, Renderer(byte_tokenizer()), is_quantised=True)
    assert (await probe.check(ADAPTER, reference())).startswith("proven: ")


async def test_noise_of_a_prompt_is_measured_once() -> None:
    engine = ScoringEngine()
    probe = Probe(engine, Renderer(byte_tokenizer()))
    await probe.check(ADAPTER, reference())
    engine.scored.clear()

    found = await probe.check(ADAPTER, reference())

    assert all(engine.scored)
    assert found.startswith("proven: log-probabilities differ by 0.0000 nats")


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 4.0])
async def test_wrong_scale_is_refused_and_named(scale: float) -> None:
    engine = ScoringEngine(adapted=lambda token: base(token) + scale * effect(token))

    refused = await refusal(engine, reference())

    assert refused is not None
    assert refused.code == "reference_mismatch"
    assert f"effect is {scale:.2f} times" in str(refused)
    assert "use_rslora" in str(refused)


async def test_mean_and_largest_difference_and_tolerance_are_told() -> None:
    engine = ScoringEngine(adapted=lambda token: trained(token) - (3.0 if token == 9 else 0.0))

    refused = await refusal(engine, reference())

    assert refused is not None
    mean, allowed = 3 / 7, reference().allowed_at(0.0)
    assert f"by {mean:.3f} nats on average, 3.000 at most" in str(refused)
    assert f"tolerance is {allowed:.3f}" in str(refused)


async def test_other_base_model_is_named_as_the_cause() -> None:
    engine = ScoringEngine(
        base=lambda token: base(token) - 1.0, adapted=lambda token: trained(token) - 1.0
    )

    refused = await refusal(engine, reference())

    assert refused is not None
    assert refused.code == "reference_mismatch"
    assert "base model alone differs by 1.000" in str(refused)


async def test_other_weights_of_the_same_strength_are_named_as_the_cause() -> None:
    engine = ScoringEngine(adapted=lambda token: base(token) - effect(token))

    refused = await refusal(engine, reference())

    assert refused is not None
    assert "so the weights are not" in str(refused)


async def test_manifest_may_state_a_wider_tolerance() -> None:
    engine = ScoringEngine(adapted=lambda token: trained(token) - 0.5)

    assert await refusal(engine, reference()) is not None
    assert await refusal(engine, reference(tolerance=Tolerance(nats=0.6))) is None


@pytest.mark.parametrize("ids", [(1, TINY_MODEL.vocab_size), (1,) * TINY_MODEL.max_model_len])
async def test_reference_that_this_model_cannot_score_is_refused(ids: tuple[int, ...]) -> None:
    engine = ScoringEngine()

    refused = await refusal(engine, reference(ids=ids))

    assert refused is not None
    assert refused.code == "unusable_reference"


NO_NUMBERS = [math.nan, math.inf, -math.inf, -1.7e308]


@pytest.mark.parametrize("score", NO_NUMBERS)
@pytest.mark.parametrize("of", ["all tokens", "one token"])
async def test_adapter_whose_scores_are_no_numbers_is_refused(score: float, of: str) -> None:
    engine = ScoringEngine(
        adapted=lambda token: score if of == "all tokens" or token == 9 else trained(token)
    )
    # The prompt of the effect has no token 9: there the reference's has to show it.
    refused = await refusal(engine, reference())

    assert refused is not None
    assert refused.code == "not_finite"


async def test_adapter_whose_scores_are_not_told_is_refused() -> None:
    engine = ScoringEngine()
    probe = Probe(engine, Renderer(byte_tokenizer()))
    await probe.warm()
    engine.tells_nothing = True

    with pytest.raises(InvalidAdapter) as refused:
        await probe.check(ADAPTER)

    assert refused.value.code == "not_finite"


@pytest.mark.parametrize("score", NO_NUMBERS)
async def test_base_model_without_numbers_is_the_machines_fault(score: float) -> None:
    probe = Probe(ScoringEngine(base=lambda token: score), Renderer(byte_tokenizer()))
    with pytest.raises(MachineFault, match="base model itself"):
        await probe.warm()


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(), min_size=7, max_size=7),
    adapter=st.lists(st.floats(-1e6, 0), min_size=7, max_size=7),
    base_scores=st.lists(st.floats(-1e6, 0), min_size=7, max_size=7),
)
def test_whatever_the_engine_computes_the_probe_passes_or_refuses(
    scores: list[float], adapter: list[float], base_scores: list[float]
) -> None:
    try:
        prompt = ScoredPrompt(tuple(range(8)), tuple(adapter), tuple(base_scores))
        held_against = Reference((prompt,))
    except ValueError:
        held_against = reference()
    told = dict(enumerate(scores))
    engine = ScoringEngine(adapted=lambda token: told.get(token, -1.0))

    refused = asyncio.run(refusal(engine, held_against))

    passed = refused is None
    assert not passed or all(map(math.isfinite, scores[1:]))
