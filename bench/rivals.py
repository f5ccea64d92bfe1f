"""loragate beside stock vLLM and llama.cpp's server, one table: `make bench-rivals`.

Each round starts every server in turn, with the same model and adapters (llama.cpp with the same
files in its own form), and sends all the same closed-loop streams. What each case measures is as
in `make bench`; `load` is as in `make bench-swap`, but for loragate with a publication over HTTP
before each promotion. llama.cpp has its adapters from its command line, so that another one needs
a restart. Of stock vLLM in bfloat16 and in float32 each line shows the better, and says which.

With `--json` the figures are kept, and those of later runs join them: many short runs make one
table. `python -m bench.llama_cpp` builds llama.cpp's server first.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from bench import llama_cpp, processor, servers
from bench.adapters import make_adapter
from bench.comparison import BEST, LOUD, QUIET, RESTART, STALL, Comparison
from bench.limits import Limits
from bench.measures import Case, Results
from bench.processor import Processor
from bench.servers import MAX_CPU_LORAS, Bounds, Running, loragate, model_path, stock_vllm
from bench.serving import measure_case, vllm_version
from bench.streams import closed_loop
from bench.swap import add_tenant, publisher, stall, stock_loader

STEADY = 4  # streams beside a load
LOAD_SECONDS = 10
SERVERS = ("vllm-bfloat16", "vllm-float32", "llama.cpp", "loragate")


@dataclass(frozen=True, slots=True)
class Setup:
    """What servers are started for: so many adapters, so many streams at once."""

    adapters: int
    streams: int

    @property
    def name(self) -> str:
        return f"{self.adapters} adapters, {self.streams} streams"

    @property
    def ready(self) -> str:
        return f"time to ready, s: {self.name}"

    @property
    def memory(self) -> str:
        return f"memory, MiB: {self.name}"

    @property
    def bounds(self) -> Bounds:
        return Bounds(max_loras=self.adapters, max_cpu_loras=max(MAX_CPU_LORAS, self.adapters))


_LOAD = "load"
CASES = {
    "base": Case(0, 1),
    "adapter": Case(1, 1),
    "8-adapters": Case(8, 16),
    "long-prompts": Case(0, 16, 512),
    "64-adapters": Case(64, 64),
}
SETUPS = {
    Setup(8, 16): ("base", "adapter", "8-adapters", "long-prompts", _LOAD),
    Setup(64, 64): ("64-adapters",),
}


@dataclass(frozen=True, slots=True)
class Files:
    """What the servers are given."""

    weights: str
    adapters: Mapping[str, Path]
    swapped: Sequence[Path]  # what is loaded under load
    converted: llama_cpp.Converted | None  # of all of them, where llama.cpp is asked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in turn (default 3)")
    names = [name for cases in SETUPS.values() for name in cases]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="default all")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, help="default all")
    parser.add_argument(
        "--weights",
        choices=tuple(llama_cpp.TYPES),
        default="bfloat16",
        help="int8: loragate's, and llama.cpp's Q8_0, without stock vLLM (default bfloat16)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="keep every figure here, and join what is there"
    )
    options = parser.parse_args()
    able = [each for each in SERVERS if options.weights == "bfloat16" or "vllm" not in each]
    chosen = options.servers or able
    if unable := set(chosen) - set(able):
        parser.error(f"{', '.join(unable)} makes no {options.weights} weights of this checkpoint")
    machine = processor.measure(None)
    print(machine, flush=True)
    about = (
        f"{machine.name}; {options.weights} weights; {_versions()}; answers of 64 tokens; "
        f"adapters of rank 16"
    )
    comparison = Comparison.open(options.json, about)
    comparison.add_machine(machine)
    asyncio.run(
        _measure(options.rounds, options.cases, chosen, options.weights, machine, comparison)
    )
    print(f"\n{comparison.table()}")


def _versions() -> str:
    return (
        f"loragate {version('loragate')}, vllm {vllm_version()}, "
        f"llama.cpp b{llama_cpp.BUILD} built for this processor"
    )


async def _measure(
    rounds: int,
    cases: Sequence[str],
    chosen: Sequence[str],
    weights: str,
    machine: Processor,
    comparison: Comparison,
) -> None:
    for setup, all_cases in SETUPS.items():
        inside = [case for case in all_cases if case in cases]
        if not inside:
            continue
        with tempfile.TemporaryDirectory(prefix="bench-rivals-") as folder:
            loads = LOAD_SECONDS + 1 if _LOAD in inside else 0
            files = _make(Path(folder), setup, weights, loads, "llama.cpp" in chosen)
            limits = Limits.of(model_path(), files.adapters["adapter0"], weights, machine)
            for number in range(rounds):
                _add_limits(limits, setup, inside, comparison.of(BEST))
                for name in chosen:
                    began = time.perf_counter()
                    await _measure_server(name, setup, inside, files, comparison.of(name))
                    comparison.keep()
                    seconds = time.perf_counter() - began
                    print(f"round {number + 1} of {name}: {seconds:.0f} s", flush=True)


def _make(folder: Path, setup: Setup, weights: str, loads: int, has_llama_cpp: bool) -> Files:
    adapters = {
        f"adapter{i}": make_adapter(folder / f"adapter{i}", model_path(), i)
        for i in range(setup.adapters)
    }
    swapped = [make_adapter(folder / f"swapped{i}", model_path(), 1000 + i) for i in range(loads)]
    converted = None
    if has_llama_cpp:
        all_of_them = adapters | {path.name: path for path in swapped[:1]}
        converted = llama_cpp.installed().convert(model_path(), all_of_them, weights, folder)
    return Files(weights, adapters, swapped, converted)


def _add_limits(limits: Limits, setup: Setup, cases: Sequence[str], results: Results) -> None:
    for name in cases:
        if name == _LOAD:
            step = limits.of_case(Case(STEADY, STEADY))[Case(STEADY, STEADY).between_tokens]
            _add_stall(results, step, step)
        else:
            for measure, value in limits.of_case(CASES[name]).items():
                results[measure].append(value)
    results[setup.ready].append(limits.seconds_to_read(setup.adapters))
    results[setup.memory].append(limits.mib(setup.adapters))


async def _measure_server(
    name: str, setup: Setup, cases: Sequence[str], files: Files, results: Results
) -> None:
    async with _started(name, setup, files) as running:
        results[setup.ready].append(time.perf_counter() - running.started)
        doors = [running.doors[each] for each in ("base", *files.adapters)]
        await closed_loop(doors, len(doors), 1, 32, 8, seed=1)  # the slow first steps
        for case in cases:
            if case != _LOAD:
                await measure_case(running, CASES[case], results)
        results[setup.memory].append(running.memory_mib())
        if _LOAD in cases and name != "llama.cpp":
            _add_stall(results, *await _load(running, files))
        ended = time.perf_counter()
    if _LOAD in cases and name == "llama.cpp":
        async with _started(name, setup, files, has_another=True):
            results[RESTART].append(time.perf_counter() - ended)


def _add_stall(results: Results, quiet: float, loud: float) -> None:
    for measure, value in {QUIET: quiet, LOUD: loud, STALL: loud / quiet}.items():
        results[measure].append(value)


async def _load(running: Running, files: Files) -> tuple[float, float]:
    """The others' 99th percentile between tokens in milliseconds, without loads and with."""
    async with httpx.AsyncClient(timeout=60) as http:
        if running.name == "loragate":
            await add_tenant(http, running)
            load = publisher(http, running, files.swapped)
        else:
            load = stock_loader(http, running, files.swapped)
        await load(LOAD_SECONDS)  # a server's first
        quiet, loud = await stall(running, list(files.adapters)[:STEADY], LOAD_SECONDS, load)
    print(f"  {running.name} p99: {quiet * 1000:.0f} ms, with loads {loud * 1000:.0f}", flush=True)
    return quiet * 1000, loud * 1000


@asynccontextmanager
async def _started(
    name: str, setup: Setup, files: Files, has_another: bool = False
) -> AsyncIterator[Running]:
    if name == "loragate":
        settings = {} if files.weights == "bfloat16" else {"LORAGATE_ENGINE_WEIGHTS": files.weights}
        start = loragate(files.adapters, settings=settings, bounds=setup.bounds)
    elif name == "llama.cpp":
        assert files.converted is not None
        adapters = files.converted.adapters
        if not has_another:
            adapters = {each: adapters[each] for each in files.adapters}
        server = llama_cpp.installed().server
        start = servers.llama_cpp(server, files.converted.model, adapters, setup.streams)
    else:
        start = stock_vllm(files.adapters, name.removeprefix("vllm-"), setup.bounds)
    async with start as running:
        yield running


if __name__ == "__main__":
    main()
