"""The rows that a run is measured on beside its test split: benchmarks, other tests, old tasks."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.files import inspect
from loragate.trainer.data.example import Example
from loragate.trainer.data.reading import read_rows
from loragate.trainer.data.seen import SeenRows
from loragate.trainer.data.splits import SHEET, SplitFolder
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.requirements import Requirement
from loragate.trainer.evaluation.table_names import check_name
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from loragate.trainer.training.plan import find_parent

FAR: Final = "far"  # the test rows far from every train row, which the test split itself has
_BENCHMARKS: Final = "evaluation.benchmarks"
_MOST_PARENTS: Final = 20


@dataclass(frozen=True, slots=True)
class TestSource:
    """Where the rows of one test set are: `name` is that of requirements, `title` of reports."""

    __test__ = False  # pytest takes the name for a test's

    name: str
    title: str
    path: Path

    def rows(self) -> Sequence[Example]:
        """The test rows of a folder of splits or of a run, or those of a file. Raises DataError."""
        path = self.path
        if not path.is_dir():
            return [row.example for row in read_rows([path]).rows]
        folder = RunFolder(path)
        if folder.resolved_file.is_file() and not (path / SHEET).is_file():
            data = folder.resolved().data
            path = folder.data if data.raw else Path(data.splits)
        return SplitFolder.read(path).splits["test"]


def sources_of(run: Run) -> tuple[TestSource, ...]:
    """[evaluation] benchmarks and tests, what is replayed, and the test sets that the versions kept
    which the run goes on from, each file once.

    Raises EvaluationError for a name that cannot be, and what `find_parent` raises.
    """
    settings, found = run.settings, dict[str, TestSource]()
    for name, path in settings.evaluation.benchmarks.items():
        check_name(_BENCHMARKS, name, {FAR})
        found[name] = TestSource(name, f"benchmark {name}", run.root / path)
    given = [*settings.evaluation.tests, *([settings.data.replay] if settings.data.replay else [])]
    for path in (run.root / each for each in dict.fromkeys(given)):
        name = _free_name(path, found)
        found[name] = TestSource(name, name, path)
    for path in _old_tests(run):
        if path not in [each.path for each in found.values()]:
            name = _free_name(path, found)
            found[name] = TestSource(name, f"{path.stem}, the test set of an earlier version", path)
    return tuple(found.values())


def more_tests(
    run: Run, sources: Sequence[TestSource], is_known: Callable[[Example], bool]
) -> dict[str, list[Example]]:
    """The rows of each source without those that anything was trained on. Raises DataError."""
    found: dict[str, list[Example]] = {}
    for source in sources:
        rows = [row for row in source.rows() if not is_known(row)]
        if rows:
            prompt = run.settings.data.system_prompt
            found[source.name] = [row.with_system_prompt(prompt) for row in rows]
        else:
            run.say(f"{source.path} has no row that nothing was trained on, so it is not measured.")
    return found


def require_test_sets(run: Run, requirements: Sequence[Requirement]) -> None:
    """Raises DataError where a test set cannot be read or has no row, and EvaluationError where a
    requirement names one that there is not.
    """
    sources = sources_of(run)
    for each in sources:
        each.rows()
    names = (FAR, *(each.name for each in sources))
    for requirement in requirements:
        if requirement.rows and requirement.rows not in names:
            raise EvaluationError(
                f"{str(requirement)!r} in [evaluation] require is on rows that there are not: "
                f"{requirement.rows!r}; there are {', '.join(names)}. Name a file of them in "
                "[evaluation.benchmarks], or a folder or file in [evaluation] tests"
            )


def _free_name(path: Path, taken: Mapping[str, object]) -> str:
    name = re.sub(r"[^\w.]+", "_", path.stem)
    while name in taken or name == FAR:
        name += "_"
    return name


def _old_tests(run: Run) -> Iterator[Path]:
    """The files of the test sets, kept by name, of the versions that the run goes on from."""
    text = run.settings.model.continue_from
    for _ in range(_MOST_PARENTS):
        if not text:
            return
        try:
            lineage = inspect(find_parent(text, run.home).folder).manifest.lineage
        except LoragateError:
            if text == run.settings.model.continue_from:
                raise
            return  # an older one is gone
        name = _test_set_of(str(lineage.get("run_toml", "")))
        path = run.home.root / "test_sets" / f"{name}.jsonl"
        if name and name != run.settings.data.test_set and path.is_file():
            yield path
        text = str(lineage.get("continued_from", ""))


def _test_set_of(run_toml: str) -> str:
    try:
        data = tomllib.loads(run_toml).get("data", {})
    except tomllib.TOMLDecodeError:  # an adapter that was trained elsewhere says what it wants
        return ""
    return str(cast(dict[str, object], data).get("test_set", "")) if isinstance(data, dict) else ""


def seen_by_any(known: Mapping[str, SeenRows]) -> Callable[[Example], bool]:
    """Whether any of these was trained on a row."""
    return lambda row: any(seen.has(row) for seen in known.values())
