"""What others notice of a swap, and what whoever swaps has to wait: `make bench-swap`.

Stall: four streams of other tenants run all the time; for five seconds of every ten a rank-16
adapter is loaded every second. The 99th percentile of the time between tokens with loads, over that
without, for stock vLLM's `/v1/load_lora_adapter` and for loragate. For loragate a load is a whole
promotion: files checked, weights loaded, answers checked, alias moved, old version drained and
unloaded.

First token: from the call of `promote` to the first token of the new version, which was never
loaded before, on an idle server and beside the four streams.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from bench.adapters import make_adapter
from bench.servers import Running, loragate, model_path, serving, stock_vllm
from bench.streams import Door, Stream, stream

STREAMS = 4
BLOCK_SECONDS = 5  # without loads, then with: a shared machine is not as fast a minute later
PROMPT_TOKENS, ANSWER_TOKENS = 32, 400
Load = Callable[[int], Awaitable[None]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in turn (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=30, help="with loads, of each round (default 30)"
    )
    parser.add_argument("--only", choices=("vllm", "loragate"), help="leave the other one out")
    options = parser.parse_args()
    asyncio.run(_measure(options.rounds, options.seconds, options.only))


async def _measure(rounds: int, seconds: float, only: str | None) -> None:
    loads = int(seconds) + 8
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        steady = {
            f"steady{i}": make_adapter(Path(folder) / f"steady{i}", model_path(), i)
            for i in range(STREAMS)
        }
        swapped = [
            make_adapter(Path(folder) / f"swap{i}", model_path(), 100 + i) for i in range(loads)
        ]
        ratios: dict[str, list[tuple[float, float]]] = {"vllm": [], "loragate": []}
        firsts: dict[str, list[float]] = {"idle": [], "busy": []}
        for number in range(rounds):
            if only != "loragate":
                async with stock_vllm(steady) as running, httpx.AsyncClient(timeout=60) as http:
                    load = stock_loader(http, running, swapped)
                    ratios["vllm"].append(await stall(running, list(steady), seconds, load))
                    _say(number, running, ratios["vllm"][-1])
            if only != "vllm":
                versions = {"swapped": swapped}
                async with (
                    loragate(steady, versions=versions) as running,
                    httpx.AsyncClient(timeout=60) as http,
                ):
                    firsts["idle"] += [await _promote(http, running, v) for v in (2, 3, 4)]
                    load = _promoter(http, running, 5)
                    ratios["loragate"].append(await stall(running, list(steady), seconds, load))
                    _say(number, running, ratios["loragate"][-1])
                    busy = range(5 + int(seconds), 8 + int(seconds))
                    async with _steady(running, list(steady)):
                        firsts["busy"] += [await _promote(http, running, v) for v in busy]
        _print(ratios, firsts)


def stock_loader(http: httpx.AsyncClient, running: Running, adapters: Sequence[Path]) -> Load:
    """Of these folders in turn, each time under a new name."""

    async def load(number: int) -> None:
        path = adapters[number % len(adapters)]
        body = {"lora_name": f"swapped{number}", "lora_path": str(path)}
        answer = await http.post(f"{running.url}/v1/load_lora_adapter", json=body)
        answer.raise_for_status()

    return load


def publisher(http: httpx.AsyncClient, running: Running, adapters: Sequence[Path]) -> Load:
    """Of these folders in turn: sent over HTTP as the next version, then promoted."""

    contents = [
        [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
        for folder in adapters
    ]

    async def load(number: int) -> None:
        files = contents[number % len(contents)]
        answer = await http.post(_url(running, "versions"), files=files, headers=running.admin)
        answer.raise_for_status()
        version = int(answer.json()["version"].removeprefix("v"))
        await set_champion(http, running, version)
        await serving(running, "swapped", version)

    return load


async def add_tenant(http: httpx.AsyncClient, running: Running) -> None:
    """The one that a publisher publishes for."""
    url = f"{running.url}/admin/v1/tenants"
    answer = await http.post(url, json={"tenant": "swapped"}, headers=running.admin)
    answer.raise_for_status()


def _promoter(http: httpx.AsyncClient, running: Running, first: int) -> Load:
    async def load(number: int) -> None:
        await set_champion(http, running, first + number)
        await serving(running, "swapped", first + number)

    return load


async def set_champion(http: httpx.AsyncClient, running: Running, version: int) -> None:
    answer = await http.put(
        _url(running, "aliases/champion"),
        json={"version": f"v{version}", "reason": "benchmark"},
        headers=running.admin,
    )
    answer.raise_for_status()


def _url(running: Running, what: str) -> str:
    return f"{running.url}/admin/v1/tenants/swapped/adapters/adapter/{what}"


async def _promote(http: httpx.AsyncClient, running: Running, version: int) -> float:
    """Seconds from `promote` to the first token of that version."""
    begin = time.perf_counter()
    await set_champion(http, running, version)
    await serving(running, "swapped", version, look_every=0.02)
    while True:  # the registry says so a moment before the gateway has heard of it
        answer = await stream(running.doors["swapped"], range(100, 108), 1)
        if answer.version == f"swapped/adapter@v{version}":
            return answer.arrivals[0] - begin


async def stall(
    running: Running, names: Sequence[str], seconds: float, load: Load
) -> tuple[float, float]:
    """The 99th percentile of the gaps in seconds, without loads and with."""
    quiet: list[float] = []
    loud: list[float] = []
    async with _steady(running, names) as answers:
        await asyncio.sleep(4)  # the first steps of a server are its slowest
        for first in range(0, int(seconds), BLOCK_SECONDS):
            await asyncio.sleep(1)  # what the last load has left to do
            begin = time.perf_counter()
            await asyncio.sleep(BLOCK_SECONDS)
            middle = time.perf_counter()
            for number in range(BLOCK_SECONDS):
                await asyncio.sleep(max(0, middle + number - time.perf_counter()))
                await load(first + number)
            await asyncio.sleep(max(0, middle + BLOCK_SECONDS - time.perf_counter()))
            quiet += _gaps(answers, begin, middle)
            loud += _gaps(answers, middle, time.perf_counter())
    return _p99(quiet), _p99(loud)


@asynccontextmanager
async def _steady(running: Running, names: Sequence[str]) -> AsyncIterator[list[Stream]]:
    """One stream after the other at each door; their answers, also those under way."""
    answers: list[Stream] = []

    async def run(door: Door, seed: int) -> None:
        draw = random.Random(seed)
        while True:
            prompt = [draw.randrange(100, 40000) for _ in range(PROMPT_TOKENS)]
            await stream(door, prompt, ANSWER_TOKENS, answers)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(run(running.doors[name], seed)) for seed, name in enumerate(names)
        ]
        yield answers
        for task in tasks:
            task.cancel()


def _gaps(answers: Iterable[Stream], begin: float, end: float) -> list[float]:
    return [
        later - earlier
        for answer in answers
        for earlier, later in itertools.pairwise(answer.arrivals)
        if begin <= earlier and later <= end
    ]


def _p99(gaps: Sequence[float]) -> float:
    return statistics.quantiles(gaps, n=100)[-1]


def _say(number: int, running: Running, p99: tuple[float, float]) -> None:
    quiet, loud = (seconds * 1000 for seconds in p99)
    print(
        f"round {number + 1}  {running.name:9} p99 between tokens: {quiet:.0f} ms, "
        f"with a load every second {loud:.0f} ms, ratio {loud / quiet:.2f}",
        flush=True,
    )


def _print(
    ratios: Mapping[str, Sequence[tuple[float, float]]], firsts: Mapping[str, Sequence[float]]
) -> None:
    print("\n| server | p99 without loads | p99 with | ratio (each round) |\n|---|---|---|---|")
    for name, rounds in ratios.items():
        if rounds:
            quiet, loud = (statistics.median(column) * 1000 for column in zip(*rounds, strict=True))
            each = sorted(b / a for a, b in rounds)
            shown = ", ".join(f"{one:.2f}" for one in each)
            ratio = f"{statistics.median(each):.2f} ({shown})"
            print(f"| {name} | {quiet:.0f} ms | {loud:.0f} ms | {ratio} |")
    for state, seconds in firsts.items():
        if seconds:
            print(
                f"\nfrom promote to the first token, {state} server: median "
                f"{statistics.median(seconds):.2f} s of {len(seconds)} "
                f"({min(seconds):.2f} to {max(seconds):.2f})"
            )


if __name__ == "__main__":
    main()
