"""A version beside its merged model: what is said of it, and how it is asked."""

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.server.comparison.agreement import Agreement, agree, diverge, kl
from loragate.server.comparison.asking import ComparisonClient, ComparisonFailed, Target
from loragate.server.comparison.comparing import Comparison, Costs, Measurement, Settings, compare
from loragate.server.comparison.prompts import BadPrompts, read_prompts, shipped_prompts
from loragate.server.comparison.report import to_html
from loragate.server.comparison.speed import Speed
from loragate.server.core import Delta, TokenLogprob
from loragate.server.engine.memory import MemoryRequirement
from loragate.server.engine.protocol import Engine, EngineRequest
from loragate.server.merged.backend import MergedBackend
from support.engines.echo_engine import EchoEngine
from support.server.small_server import SUPPORT, Furnished, on_a_socket, serve, small_config
from support.waiting import until

GIB = 2**30


@dataclass
class ScoringEcho(EchoEngine):
    """Scores every prompt token with a half, and one other with a quarter; `shift` moves that."""

    shift: float = 0.0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if request.sampling.prompt_logprobs is None or request.id.startswith("probe-"):
            async for delta in super().generate(request):
                yield delta
            return
        scores = [self._score(token_id) for token_id in request.prompt_ids[1:]]
        yield Delta(
            index=0, prompt_logprobs=(None, *scores), token_ids=(1,), finish_reason="length"
        )

    def _score(self, token_id: int) -> TokenLogprob:
        own, other = math.log(0.5 - self.shift), math.log(0.25 + self.shift)
        top = (TokenLogprob("", token_id, own), TokenLogprob("", token_id + 1, other))
        return TokenLogprob("", token_id, own, top)


def test_divergence_is_of_what_is_the_same_from_the_beginning() -> None:
    assert diverge([1, 2, 3], [1, 2, 3]).is_none
    assert diverge([1, 2, 3, 4], [1, 2, 9, 4]).same_tokens == 2
    assert not diverge([1, 2], [1, 2, 3]).is_none


def test_kl_of_equal_scores_is_zero_and_that_of_known_ones_is_exact() -> None:
    half = {1: math.log(0.5), 2: math.log(0.5)}
    other = {1: math.log(0.75), 2: math.log(0.25)}
    assert kl(half, half) == 0
    assert kl(half, other) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2))


def test_kl_over_the_likeliest_tokens_is_a_lower_bound_of_the_whole() -> None:
    p = [0.6, 0.2, 0.15, 0.05]
    q = [0.5, 0.3, 0.05, 0.15]
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    of_two = kl({0: math.log(0.6), 1: math.log(0.2)}, {0: math.log(0.5), 1: math.log(0.3)})
    assert 0 < of_two < whole


def test_agreement_counts_positions_whose_likeliest_token_is_the_same() -> None:
    reference = [{1: -0.1, 2: -3.0}, {1: -0.1, 2: -3.0}]
    found = [{1: -0.2, 2: -2.0}, {1: -3.0, 2: -0.1}]
    agreement = agree([diverge([5, 6], [5, 7])], reference, found)

    assert (agreement.same_top, agreement.positions) == (0.5, 2)
    assert agreement.first_divergence == 2
    assert agreement.largest_difference == pytest.approx(2.9)


def agreement(mean_kl: float, same_top: float = 1.0) -> Agreement:
    same = (diverge([1, 2], [1, 2]),)
    return Agreement(same, 2, same_top, mean_kl, mean_kl, 0.1, (mean_kl, mean_kl))


def comparison(gain: float, mean_kl: float = 1e-4, same_top: float = 1.0) -> Comparison:
    def measured(name: str, rate: float, memory: int) -> Measurement:
        speeds = tuple(Speed(n, rate * n, 0.05, 0.08, 1 / rate) for n in (1, 8))
        return Measurement(name, speeds, memory, f"what {name} costs")

    return Comparison(
        *("acme/support@v1", 1, Settings(), agreement(mean_kl, same_top), agreement(0.5, 0.6)),
        (
            measured("base", 30, 3 * GIB),
            measured("unmerged", 20, 5 * 2**20),
            measured("merged", 20 * gain, GIB),
        ),
    )


def test_merging_is_recommended_where_it_says_the_same_faster_and_its_price_is_named() -> None:
    said = comparison(1.6).recommendation
    assert said.startswith("Merging pays")
    assert "1.60 times at one stream and 1.60 times at 8 streams" in said
    assert "1.00 GiB of memory" in said


def test_merging_is_not_recommended_without_a_gain() -> None:
    assert comparison(1.02).recommendation.startswith("Serve it unmerged.")


@pytest.mark.parametrize(("mean_kl", "same_top"), [(0.2, 1.0), (1e-4, 0.8)])
def test_model_that_says_something_else_is_never_recommended(
    mean_kl: float, same_top: float
) -> None:
    said = comparison(3.0, mean_kl, same_top).recommendation
    assert "says something else" in said
    assert "Serve it unmerged" in said


def test_page_holds_all_it_shows_and_loads_nothing() -> None:
    page = to_html(comparison(1.6), "2030-01-01 00:00")
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert "<link" not in page
    assert "what merged costs" in page


def test_prompts_are_lines_of_text_or_rows_of_training_data(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        'plain text\n{"prompt": "asked"}\n'
        '{"messages": [{"role": "system", "content": "be short"}, '
        '{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
    )
    plain, asked, row = read_prompts(file)
    assert plain == ({"role": "user", "content": "plain text"},)
    assert asked == ({"role": "user", "content": "asked"},)
    assert [turn["role"] for turn in row] == ["system", "user"]


@pytest.mark.parametrize("line", ['{"text": 1}', "{broken", '{"messages": 3}', ""])
def test_line_that_is_no_prompt_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(BadPrompts, match=r"line 1 of|holds no prompts"):
        read_prompts(file)


SUBJECTS = (
    Target("base", "base"),
    Target("unmerged", "support@v1", "unmerged"),
    Target("merged", "support@v1+merged", "merged"),
)


def costs() -> Costs:
    return (3 * GIB, "shared"), (5000, "files"), (GIB, "its own")


async def test_comparison_asks_all_three_of_a_server_and_finds_the_one_that_differs(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    merged = ScoringEcho(shift=0.2)

    @asynccontextmanager
    async def start(folder: Path, need: MemoryRequirement) -> AsyncIterator[Engine]:
        yield merged

    merged_backend = MergedBackend(start, free_bytes=lambda: 64 * GIB)
    root = tmp_path / "served"
    async with serve(
        *(furnished, root, base, ScoringEcho(), small_config()), merged_backend=merged_backend
    ) as served:
        served.registry.merges.attach(SUPPORT, 1, base.path)
        served.registry.merged.serve(SUPPORT, 1)
        one = served.registry.snapshot().resolve("acme", "support", "v1")

        def is_served() -> bool:
            status = served.registry.snapshot().merged(one)
            return status is not None and status.state == "SERVING"

        await until(is_served, 5)
        async with (
            on_a_socket(served) as client,
            ComparisonClient(str(client.base_url), served.keys["acme"]) as asker,
        ):
            settings = Settings(tokens=4, top=2, streams=(1, 2), rounds=1)
            prompts = shipped_prompts()[:3]
            done = await compare(
                asker, "acme/support@v1", SUBJECTS, prompts, settings, costs, lambda what: None
            )
            merged.is_alive = False
            with pytest.raises(ComparisonFailed, match="merged was asked, and answered unmerged"):
                await asker.answer(SUBJECTS[2], prompts[0], 4)

    assert done.base.mean_kl == 0
    assert done.base.same_answers == 3
    assert done.merged.mean_kl == pytest.approx(
        0.5 * math.log(0.5 / 0.3) + 0.25 * math.log(0.25 / 0.45)
    )
    assert done.merged.same_top == 0
    assert not done.says_the_same
    assert [speed.streams for speed in done.measured[1].speeds] == [1, 2]
    assert done.measured[2].memory_bytes == GIB
