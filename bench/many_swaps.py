"""A thousand swaps under load, in float32: `make bench-many-swaps`.

One adapter's champion moves on and on through eight versions, each move a whole promotion, while
streams ask it all the time. Each answer is compared, token for token, with what vLLM's own offline
`LLM` says with the weights of the version that the answer's header names. The memory of the server
and of the engine's core is read after each swap; its slope is what a swap leaves behind.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.progress import track

from bench.adapters import make_adapter
from bench.offline import Answers, answer_offline
from bench.servers import Running, loragate, model_path, serving
from bench.swap import set_champion

VERSIONS, PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 8, 6, 24, 24
TENANT = "swapped"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=1000, help="default 1000")
    parser.add_argument("--streams", type=int, default=4, help="at once (default 4)")
    options = parser.parse_args()
    asyncio.run(_measure(options.swaps, options.streams))


@dataclass(slots=True)
class Tally:
    """What came of the requests."""

    right: dict[str, int] = field(default_factory=dict)  # by version
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


async def _measure(swaps: int, streams: int) -> None:
    draw = random.Random(0)
    prompts = [[draw.randrange(100, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        versions = [
            make_adapter(Path(folder) / f"v{number}", model_path(), number)
            for number in range(1, VERSIONS + 1)
        ]
        adapters = {f"{TENANT}/adapter@{path.name}": path for path in versions}
        reference = await answer_offline(
            Path(folder), model_path(), adapters, prompts, ANSWER_TOKENS
        )
        async with (
            loragate({}, dtype="float32", versions={TENANT: versions}) as running,
            httpx.AsyncClient(timeout=600) as http,
            _asking(http, running, streams, prompts, reference) as tally,
        ):
            began = time.perf_counter()
            memory = await _swap(http, running, swaps)
            seconds = time.perf_counter() - began
        _print(tally, memory, swaps, seconds)


@asynccontextmanager
async def _asking(
    http: httpx.AsyncClient,
    running: Running,
    streams: int,
    prompts: Sequence[list[int]],
    reference: Answers,
) -> AsyncIterator[Tally]:
    tally, is_over = Tally(), asyncio.Event()

    async def ask(seed: int) -> None:
        draw = random.Random(seed)
        while not is_over.is_set():
            number = draw.randrange(len(prompts))
            await _ask(http, running, prompts[number], number, reference, tally)

    async with asyncio.TaskGroup() as group:
        for seed in range(streams):
            group.create_task(ask(seed))
        yield tally
        is_over.set()


async def _ask(
    http: httpx.AsyncClient,
    running: Running,
    prompt: list[int],
    number: int,
    reference: Answers,
    tally: Tally,
) -> None:
    door = running.doors[TENANT]
    body = {
        "model": door.model,
        "prompt": prompt,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    headers = {"authorization": f"Bearer {door.key}"}
    answer = await http.post(f"{door.url}/v1/completions", json=body, headers=headers)
    if answer.is_error:
        tally.failed.append(f"{answer.status_code} {answer.text[:200]}")
        return
    version = answer.headers["x-loragate-adapter"]
    if answer.json()["choices"][0]["token_ids"] == reference[version][number]:
        tally.right[version] = tally.right.get(version, 0) + 1
    else:
        tally.wrong.append(f"{version}, prompt {number}")


async def _swap(
    http: httpx.AsyncClient, running: Running, swaps: int
) -> dict[str, list[tuple[int, float]]]:
    """Resident MiB of each process after each swap, with the swap's number."""
    server = psutil.Process(running.process.pid)
    core = max(server.children(recursive=True), key=lambda each: each.memory_info().rss)
    memory: dict[str, list[tuple[int, float]]] = {"server": [], "engine core": []}
    for number in track(range(1, swaps + 1), "swapping"):
        version = number % VERSIONS + 1
        await set_champion(http, running, version)
        await serving(running, TENANT, version)
        for name, process in (("server", server), ("engine core", core)):
            memory[name].append((number, process.memory_info().rss / 2**20))
    return memory


def _print(
    tally: Tally, memory: Mapping[str, Sequence[tuple[int, float]]], swaps: int, seconds: float
) -> None:
    right = sum(tally.right.values())
    print(
        f"\n{swaps} swaps in {seconds:.0f} s. {right} answers, each that of the version in its "
        f"header ({len(tally.right)} versions); {len(tally.wrong)} others; "
        f"{len(tally.failed)} requests failed."
    )
    for example in (*tally.wrong[:5], *tally.failed[:5]):
        print(f"  {example}")
    print("\n| process | MiB after warm-up | MiB at the end | slope, MiB per 100 swaps |")
    print("|---|---|---|---|")
    for name, samples in memory.items():
        settled = samples[len(samples) // 5 :]  # until then caches fill
        slope = statistics.linear_regression(*zip(*settled, strict=True)).slope
        print(f"| {name} | {settled[0][1]:.0f} | {settled[-1][1]:.0f} | {slope * 100:+.2f} |")


if __name__ == "__main__":
    main()
