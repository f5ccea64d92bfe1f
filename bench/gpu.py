"""Many adapters of large ranks on a GPU, beside stock vLLM: `make bench-gpu`.

As `make bench`, with 32 and 256 adapters at ranks 16 and 64. `--adapters 4 --ranks 8 --rounds 1
--streams 4` tries the script where there is no GPU.
"""

import argparse
import asyncio
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from bench import processor
from bench.adapters import make_adapter
from bench.measures import Case, Results
from bench.servers import Bounds, loragate, model_path, stock_vllm
from bench.serving import measure_server, print_results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in turn (default 3)")
    parser.add_argument("--adapters", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    options = parser.parse_args()
    for rank in options.ranks:
        for count in options.adapters:
            print(f"\n## {count} adapters of rank {rank}", flush=True)
            asyncio.run(_measure(options.rounds, count, rank, options.streams))


async def _measure(rounds: int, count: int, rank: int, streams: list[int]) -> None:
    cases = [Case(adapters, each) for each in streams for adapters in (0, min(count, each))]
    results: dict[str, Results] = {name: defaultdict(list) for name in ("vllm", "loragate")}
    bounds = Bounds(max_loras=count, max_cpu_loras=2 * count, max_rank=rank)
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        adapters = {
            f"adapter{i}": make_adapter(Path(folder) / f"adapter{i}", model_path(), i, rank)
            for i in range(count)
        }
        for _ in range(rounds):
            for start in (stock_vllm, loragate):
                async with start(adapters, bounds=bounds) as running:
                    await measure_server(running, cases, results[running.name])
    has_gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if has_gpu else str(processor.measure(None))
    print_results(results, machine)


if __name__ == "__main__":
    main()
