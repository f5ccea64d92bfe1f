"""What the gateway costs: loragate over HTTP against its engine alone (`make bench-direct`).

The engine is started with the same settings either way; directly, its tokens are only counted.
"""

import argparse
import asyncio
import random
import statistics
import time

from rich.progress import Progress

from bench.servers import KV_CACHE_GIB, MAX_LORAS, MAX_MODEL_LEN, MAX_RANK, loragate, model_path
from bench.streams import Stream, closed_loop, rate
from loragate.adapters.base_model import prepare
from loragate.adapters.home import Home
from loragate.server.config import EngineConfig
from loragate.server.core import SamplingParams
from loragate.server.engine import Engine, EngineRequest
from loragate.server.vllm_engine import run_engine

PROMPT_TOKENS, ANSWER_TOKENS = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turn (default 3)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    options = parser.parse_args()
    asyncio.run(_measure(options.rounds, options.streams))


async def _measure(rounds: int, counts: list[int]) -> None:
    direct: dict[int, list[list[Stream]]] = {count: [] for count in counts}
    served: dict[int, list[list[Stream]]] = {count: [] for count in counts}
    home = Home.from_environment()
    base = prepare(model_path().name, home.models, Progress())
    for _ in range(rounds):
        async with run_engine(_settings(), base, home.cache) as engine:
            await _directly(engine, 4)
            for count in counts:
                direct[count].append(await _directly(engine, count))
        async with loragate({}) as running:
            doors = [running.doors["base"]]
            await closed_loop(doors, 4, 1, PROMPT_TOKENS, ANSWER_TOKENS, seed=0)
            for count in counts:
                answers = await closed_loop(
                    doors, count, _repeats(count), PROMPT_TOKENS, ANSWER_TOKENS, seed=count
                )
                served[count].append(answers)
    print("| streams | direct, tokens/s | loragate, tokens/s | ratio | first token | each token |")
    print("|---|---|---|---|---|---|")
    for count in counts:
        rates = [statistics.median(map(rate, each[count])) for each in (direct, served)]
        firsts, gaps = (
            [statistics.median(pick(each[count])) * 1e3 for each in (direct, served)]
            for pick in (_first_tokens, _gaps)
        )
        print(
            f"| {count} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} "
            f"| {firsts[1] - firsts[0]:+.1f} ms | {gaps[1] - gaps[0]:+.2f} ms |"
        )


def _settings() -> EngineConfig:
    return EngineConfig(
        dtype="bfloat16",
        max_loras=MAX_LORAS,
        max_lora_rank=MAX_RANK,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_gib=KV_CACHE_GIB,
    )


async def _directly(engine: Engine, count: int) -> list[Stream]:
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True)

    async def one(index: int) -> list[Stream]:
        draw, answers = random.Random(f"{count} {index}"), []
        for turn in range(_repeats(count)):
            prompt = tuple(draw.randrange(100, 40000) for _ in range(PROMPT_TOKENS))
            answer = Stream(time.perf_counter())
            request = EngineRequest(f"{count}-{index}-{turn}-{answer.started}", prompt, sampling)
            async for _ in engine.generate(request):
                answer.arrivals.append(time.perf_counter())
            answers.append(answer)
        return answers

    return [answer for each in await asyncio.gather(*map(one, range(count))) for answer in each]


def _repeats(count: int) -> int:
    return 3 if count <= 16 else 1


def _first_tokens(rounds: list[list[Stream]]) -> list[float]:
    return [answer.first_token for answers in rounds for answer in answers]


def _gaps(rounds: list[list[Stream]]) -> list[float]:
    return [gap for answers in rounds for answer in answers for gap in answer.gaps]


if __name__ == "__main__":
    main()
