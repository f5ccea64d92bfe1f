"""Do a client that we did not write and our load tests agree? `make bench-clients`.

vLLM's own `bench serve` and the load tests' `throughput-base` ask one running loragate for the
same: the base model, 16 requests at a time, prompts of about 32 tokens, answers of exactly 64, over
HTTP.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from bench.servers import Running, loragate, model_path
from loadtests.measures import steps
from loadtests.records import read_run

STREAMS, PROMPT_TOKENS, ANSWER_TOKENS = 16, 32, 64
# As vLLM's command line does, which asks for a package named `vllm` and so not on CPU.
_BENCH_SERVE = (
    "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turn (default 3)")
    parser.add_argument("--requests", type=int, default=128, help="of bench serve (default 128)")
    options = parser.parse_args()
    asyncio.run(_measure(options.rounds, options.requests))


async def _measure(rounds: int, requests: int) -> None:
    rates: dict[str, list[float]] = {"bench serve": [], "load tests": []}
    with tempfile.TemporaryDirectory(prefix="bench-clients-") as folder:
        async with loragate({}) as running:
            for number in range(rounds):
                work = Path(folder) / str(number)
                work.mkdir()
                rates["bench serve"].append(await _bench_serve(running, requests, work))
                rates["load tests"].append(await _load_tests(running, work / "run"))
                latest = ", ".join(f"{name} {each[-1]:.1f}" for name, each in rates.items())
                print(f"round {number + 1}: {latest} tokens/s", flush=True)
    theirs, ours = (statistics.median(each) for each in rates.values())
    print(f"\nmedians: {theirs:.1f} and {ours:.1f} tokens/s, ratio {ours / theirs:.3f}")


async def _bench_serve(running: Running, requests: int, work: Path) -> float:
    door = running.doors["base"]
    await _run(
        *("-c", _BENCH_SERVE, "--backend", "openai", "--base-url", running.url),
        *("--endpoint", "/v1/completions", "--model", "base", "--tokenizer", str(model_path())),
        *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
        *("--random-output-len", str(ANSWER_TOKENS), "--ignore-eos", "--num-prompts"),
        *(str(requests), "--max-concurrency", str(STREAMS), "--save-result"),
        *("--result-dir", str(work), "--result-filename", "served.json"),
        environment={"OPENAI_API_KEY": door.key or ""},
    )
    rate: float = json.loads((work / "served.json").read_text())["output_throughput"]
    return rate


async def _load_tests(running: Running, out: Path) -> float:
    await _run(
        *("-m", "loadtests", "run", "throughput-base", "--url", running.url, "--grpc"),
        *(running.grpc, "--admin-key", running.admin["authorization"].removeprefix("Bearer ")),
        *("--protocol", "http", "--prompt-words", str(PROMPT_TOKENS), "--output-tokens"),
        *(str(ANSWER_TOKENS), "--out", str(out)),
    )
    [step] = steps(read_run(out / "run.jsonl"))
    return step.tokens_per_second


async def _run(*arguments: str, environment: dict[str, str] | None = None) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=os.environ | (environment or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode not in (0, 1):  # 1: an objective was missed, which is no matter here
        raise SystemExit(
            f"{arguments[:3]} ended with {process.returncode}:\n{output.decode()[-3000:]}"
        )


if __name__ == "__main__":
    main()
