"""What the gateway costs: loragate over HTTP against its engine alone (`make bench-direct`).

The same settings either way; directly, tokens are only counted. Both are up all the time and asked
in turn, since the machine's speed changes within minutes; who is not asked does nothing.
"""

import argparse
import asyncio
import random
import statistics
import time
from functools import partial

from rich.progress import Progress

from bench.servers import KV_CACHE_GIB, MAX_LORAS, MAX_MODEL_LEN, MAX_RANK, loragate, model_path
from bench.streams import Door, Stream, closed_loop, rate
from loragate.adapters.base_models.preparation import prepare
from loragate.adapters.home import Home
from loragate.server.config import EngineConfig
from loragate.server.core import SamplingParams
from loragate.server.engine.protocol import Engine, EngineRequest
from loragate.server.engine.vllm.engine import run_engine

PROMPT_TOKENS, ANSWER_TOKENS = 32, 64
MAX_STREAMS = 256
DIRECT, SERVED = "direct", "served"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="of each, in turn (default 7)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    options = parser.parse_args()
    asyncio.run(_measure(options.rounds, options.streams))


async def _measure(rounds: int, counts: list[int]) -> None:
    home = Home.from_environment()
    base = prepare(model_path().name, home.models, Progress())
    seats = {"LORAGATE_ENGINE_MAX_NUM_SEQS": str(MAX_STREAMS)}
    print("| streams | direct, tokens/s | loragate, tokens/s | ratio | first token | each token |")
    print("|---|---|---|---|---|---|")
    async with (
        run_engine(_settings(), base, home.cache) as engine,
        loragate({}, settings=seats) as running,
    ):
        ways = {
            DIRECT: partial(_directly, engine),
            SERVED: partial(_served, running.doors["base"]),
        }
        for way in ways.values():
            await way(4, 0)
        for count in counts:
            pairs = []
            for turn in range(1, rounds + 1):
                order = sorted(ways, reverse=turn % 2 == 0)
                pairs.append({name: await ways[name](count, turn) for name in order})
            print(_line(count, pairs), flush=True)


def _line(count: int, pairs: list[dict[str, list[Stream]]]) -> str:
    rates = {name: [rate(pair[name]) for pair in pairs] for name in (DIRECT, SERVED)}
    direct, served = (statistics.median(rates[name]) for name in (DIRECT, SERVED))
    ratios = [ours / theirs for ours, theirs in zip(rates[SERVED], rates[DIRECT], strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    first, each = (
        statistics.median(pick(pair[SERVED]) - pick(pair[DIRECT]) for pair in pairs) * 1e3
        for pick in (_first_token, _gap)
    )
    return f"| {count} | {direct:.1f} | {served:.1f} | {ratio} | {first:+.1f} ms | {each:+.2f} ms |"


def _settings() -> EngineConfig:
    return EngineConfig(
        dtype="bfloat16",
        max_num_seqs=MAX_STREAMS,
        max_loras=MAX_LORAS,
        max_lora_rank=MAX_RANK,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_gib=KV_CACHE_GIB,
    )


async def _directly(engine: Engine, count: int, turn: int) -> list[Stream]:
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True)

    async def one(index: int) -> list[Stream]:
        draw, answers = random.Random(f"{turn} {index}"), []
        for repeat in range(_repeats(count)):
            prompt = tuple(draw.randrange(100, 40000) for _ in range(PROMPT_TOKENS))
            answer = Stream(time.perf_counter())
            request = EngineRequest(f"{count}-{turn}-{index}-{repeat}", prompt, sampling)
            async for _ in engine.generate(request):
                answer.arrivals.append(time.perf_counter())
            answer.tokens, answer.ended = len(answer.arrivals), answer.arrivals[-1]
            answers.append(answer)
        return answers

    return [answer for each in await asyncio.gather(*map(one, range(count))) for answer in each]


async def _served(door: Door, count: int, turn: int) -> list[Stream]:
    return await closed_loop(
        [door], count, _repeats(count), PROMPT_TOKENS, ANSWER_TOKENS, seed=turn
    )


def _repeats(count: int) -> int:
    return 2 if count <= 16 else 1


def _first_token(answers: list[Stream]) -> float:
    return statistics.median(answer.first_token for answer in answers)


def _gap(answers: list[Stream]) -> float:
    return statistics.median(gap for answer in answers for gap in answer.gaps)


if __name__ == "__main__":
    main()
