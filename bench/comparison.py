"""The figures of several servers in one table, and in one file that later runs join."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

from bench.measures import Results, spread

if TYPE_CHECKING:
    from bench.processor import Processor

BEST, OURS = "at best", "loragate"
QUIET = "between tokens p99, ms: 4 adapters, 4 streams"
LOUD = f"{QUIET}, while others are loaded"
STALL = "the latter over the former"
RESTART = "seconds of a restart"
_MACHINE = "machine"
_VLLM = "vllm-"
_NONE = "–"  # noqa: RUF001 - a dash in a table


@dataclass(frozen=True, slots=True)
class Comparison:
    """By server, and of each by what was measured, a figure of each round."""

    about: str  # what all of it has in common
    path: Path | None = None
    results: dict[str, Results] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, about: str) -> Self:
        """With what `path` has. Raises SystemExit where that is about something else."""
        if path is None or not path.exists():
            return cls(about, path)
        kept = json.loads(path.read_text())
        if kept["about"] != about:
            raise SystemExit(
                f"{path} has figures of something else; name another file\n"
                f"there: {kept['about']}\nhere:  {about}"
            )
        results: dict[str, Results] = {
            name: defaultdict(list, each) for name, each in kept["results"].items()
        }
        return cls(about, path, results)

    def keep(self) -> None:
        """Writes all to the path, where there is one."""
        if self.path is not None:
            kept = {"about": self.about, "results": self.results}
            self.path.write_text(json.dumps(kept, indent=1))

    def of(self, server: str) -> Results:
        return self.results.setdefault(server, defaultdict(list))

    def add_machine(self, machine: "Processor") -> None:
        figures = self.of(_MACHINE)
        figures["reads, GB/s"].append(machine.reads)
        figures["bfloat16 weights by our kernel, GFLOP/s"].append(machine.own)
        figures["bfloat16 by torch, GFLOP/s"].append(machine.torch_bfloat16)
        figures["float32 by torch, GFLOP/s"].append(machine.torch_float32)

    def table(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield self.about
        yield "; ".join(f"{name} {spread(each)}" for name, each in self.of(_MACHINE).items())
        yield (
            "rounds alternating, median (least to most); at best: bytes to read over what the "
            "machine reads, or operations over what it makes, whichever takes longer\n"
        )
        yield f"| measure | {BEST} | loragate | stock vLLM | llama.cpp | / vLLM | / llama.cpp |"
        yield "|---|---|---|---|---|---|---|"
        for measure, best in self.of(BEST).items():
            ours, theirs = self.of(OURS).get(measure), self.of("llama.cpp").get(measure)
            dtype, stock = self._better(measure)
            cells = (
                spread([median(best)]).split(" ")[0],
                _cell(ours),
                f"{_cell(stock)} {dtype}" if stock else _NONE,
                self._restart() if measure == STALL else _cell(theirs),
                _ratio(ours, stock),
                _ratio(ours, theirs),
            )
            yield f"| {measure} | {' | '.join(cells)} |"

    def _better(self, measure: str) -> tuple[str, list[float] | None]:
        """Stock vLLM's dtype with the better median; what is said of loads is of one dtype."""
        decides = LOUD if measure in (QUIET, STALL) else measure
        found = {
            name.removeprefix(_VLLM): each
            for name, each in self.results.items()
            if name.startswith(_VLLM) and each.get(decides)
        }
        if not found:
            return "", None
        choose = max if measure.startswith("tokens/s") else min
        dtype, results = choose(found.items(), key=lambda item: median(item[1][decides]))
        return dtype, results.get(measure)

    def _restart(self) -> str:
        seconds = self.of("llama.cpp").get(RESTART)
        return f"needs a restart: {spread(seconds)} s" if seconds else _NONE


def _cell(figures: list[float] | None) -> str:
    return spread(figures) if figures else _NONE


def _ratio(ours: list[float] | None, theirs: list[float] | None) -> str:
    return f"{median(ours) / median(theirs):.2f}" if ours and theirs else _NONE
