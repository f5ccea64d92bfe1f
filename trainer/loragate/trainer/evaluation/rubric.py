"""Sheets on which people rate answers, and the ratings that are read back from them.

A sheet has the answers of all systems in one random order, without the systems' names; equal
answers to a question are one row, which counts for each that gave it. Each rater fills in a copy.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from loragate.adapters.names import CHAMPION
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.agreement import agreement
from loragate.trainer.evaluation.criteria import Criterion
from loragate.trainer.evaluation.evaluation import (
    Comment,
    Evaluation,
    RatedAnswer,
    Ratings,
    SystemRatings,
)
from loragate.trainer.evaluation.requirements import Requirement
from loragate.trainer.evaluation.spreadsheet import (
    TableRow,
    item_id,
    read_table,
    require_unfilled,
    table_bytes,
)
from loragate.trainer.evaluation.statistics import Bootstrap, ConfidenceInterval, bounded_mean
from loragate.trainer.run.folder import write_whole

_COLUMNS: Final = ("item", "prompt", "wanted", "answer", "scale")
_RATED: Final = frozenset({"base", CHAMPION, "new"})  # people's time is short
_WHOLE: Final = re.compile(r"(\d{1,3})(?:[.,]0+)?")
_LONGEST_COMMENT: Final = 2000  # characters


@dataclass(frozen=True, slots=True)
class _Item:
    """One answer to one of the samples, and the systems that gave it."""

    sample: int
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Score:
    rater: int
    item: str
    criterion: str
    number: int


def write_sheet(evaluation: Evaluation, path: Path) -> int:
    """Writes a CSV file of all samples to fill in, and returns the number of answers in it. Raises
    EvaluationError where there is nothing to rate, and where the file has ratings already.
    """
    if not evaluation.samples:
        raise EvaluationError("there are no samples to rate; set [evaluation] samples")
    require_unfilled(path, "item", _COLUMNS, "read it back with --ratings")
    scale = "; ".join(each.sentence for each in evaluation.criteria)
    blank = [""] * (len(evaluation.criteria) + 1)
    rows: list[list[str]] = []
    for item, found in _items(evaluation).items():
        sample = evaluation.samples[found.sample]
        answer = sample.answers[found.systems[0]]
        rows.append([item, sample.prompt, sample.wanted, answer, scale, *blank])
    random.Random(evaluation.about.seed).shuffle(rows)
    columns = [*_COLUMNS, *(each.name for each in evaluation.criteria), "comment"]
    write_whole(path, table_bytes(columns, rows))
    return len(rows)


def read_sheets(evaluation: Evaluation, paths: Sequence[Path]) -> Ratings:
    """Reads what raters filled in, one file a rater. Rows without any number are skipped.

    Raises EvaluationError with the file and the row.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise EvaluationError("a sheet is given twice; give one for each rater")
    items = _items(evaluation)
    scores: list[_Score] = []
    comments: list[Comment] = []
    raters = _raters(paths)
    for rater, path in enumerate(paths):
        rated: set[str] = set()
        for row in read_table(path, "item"):
            item = _item_of(row, path, items)
            found = list(_scores_of(row, path, evaluation.criteria, rater, item))
            if found and item in rated:
                raise EvaluationError(f"{path}, row {row.number}: {item!r} is rated twice")
            rated |= {item} if found else set()
            scores += found
            if said := row.cells.get("comment", "").strip()[:_LONGEST_COMMENT]:
                place = items[item]
                comments.append(Comment(raters[rater], place.sample, place.systems, said))
    if not scores:
        raise EvaluationError(
            "the sheets are empty; fill the numbers in that the column 'scale' explains, then read "
            "them"
        )
    return _ratings(evaluation, items, scores, raters, tuple(comments))


def with_ratings(evaluation: Evaluation, paths: Sequence[Path]) -> Evaluation:
    """The evaluation with what people filled in, and with its requirements checked again. Raises
    EvaluationError.
    """
    more = evaluation.more
    required = [
        Requirement.parse(each.requirement, more) for each in evaluation.requirements.results
    ]
    rated = replace(evaluation, ratings=read_sheets(evaluation, paths))
    return rated.held_against(required)


def _items(evaluation: Evaluation) -> dict[str, _Item]:
    """The answers by their ids, which do not reveal the system, and which no other evaluation has
    unless the same question was answered in the same words.
    """
    found: dict[str, _Item] = {}
    for number, sample in enumerate(evaluation.samples):
        systems: dict[str, list[str]] = defaultdict(list)
        for name in _RATED & sample.answers.keys():
            answer = sample.answers[name]
            systems[answer.strip()].append(name)
        for answer, names in sorted(systems.items()):
            item = item_id(evaluation.about.title, str(number), sample.prompt, answer)
            found[item] = _Item(number, tuple(sorted(names)))
    return found


def _raters(paths: Sequence[Path]) -> tuple[str, ...]:
    """The files' names; those that are equal get numbers."""
    names: list[str] = []
    for path in paths:
        count = sum(path.stem == other.stem for other in paths[: len(names)])
        names.append(f"{path.stem} {count + 1}" if count else path.stem)
    return tuple(names)


def _item_of(row: TableRow, path: Path, items: Mapping[str, _Item]) -> str:
    item = row.cells.get("item", "").strip()
    if item not in items:
        raise EvaluationError(
            f"{path}, row {row.number}: {item!r} is no answer of this evaluation; use the sheet "
            "that was written with it"
        )
    return item


def _scores_of(
    row: TableRow, path: Path, criteria: Sequence[Criterion], rater: int, item: str
) -> Iterator[_Score]:
    for criterion in criteria:
        said = row.cells.get(criterion.name, "").strip()
        if not said:
            continue
        whole = _WHOLE.fullmatch(said)  # a spreadsheet may have made 4.0 or 4,0 of 4
        if whole is None or not criterion.low <= int(whole[1]) <= criterion.high:
            raise EvaluationError(
                f"{path}, row {row.number}: {criterion.name} is {said!r}; give a number from "
                f"{criterion.low} to {criterion.high}"
            )
        yield _Score(rater, item, criterion.name, int(whole[1]))


def _ratings(
    evaluation: Evaluation,
    items: Mapping[str, _Item],
    scores: Sequence[_Score],
    raters: tuple[str, ...],
    comments: tuple[Comment, ...],
) -> Ratings:
    about = evaluation.about
    new = evaluation.new.name
    by_item: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for score in scores:
        by_item[score.criterion, score.item][score.rater] = score.number
    systems: list[SystemRatings] = []
    differences: dict[str, dict[str, ConfidenceInterval]] = defaultdict(dict)
    agreements = {}
    for criterion in evaluation.criteria:
        rated = {item: given for (name, item), given in by_item.items() if name == criterion.name}
        # By system and sample; of equal answers each system has the ratings.
        by_system: dict[str, dict[int, dict[int, int]]] = defaultdict(dict)
        for item, given in rated.items():
            for name in items[item].systems:
                by_system[name][items[item].sample] = given
        for system in evaluation.systems:
            if system.name == new or not (own := by_system.get(system.name)):
                continue
            paired = _paired(by_system.get(new, {}), own)
            if paired:
                width = criterion.high - criterion.low
                interval = _interval(paired, -width, width, evaluation)
                differences[system.name][criterion.name] = interval
        agreements[criterion.name] = agreement(
            [list(given.values()) for given in rated.values()],
            about.confidence,
            about.resamples,
            about.seed,
        )
        for name, own in by_system.items():
            means = [sum(given.values()) / len(given) for given in own.values()]
            interval = _interval(means, criterion.low, criterion.high, evaluation)
            systems.append(SystemRatings(name, {criterion.name: interval}))
    return Ratings(
        raters,
        len({score.item for score in scores}),
        _joined(evaluation, systems),
        agreements if len(raters) > 1 else {},
        differences,
        comments,
        tuple(
            RatedAnswer(items[item].sample, items[item].systems, name, median(given.values()))
            for (name, item), given in by_item.items()
        ),
    )


def _joined(evaluation: Evaluation, ratings: Sequence[SystemRatings]) -> tuple[SystemRatings, ...]:
    """One for each system, with all its criteria."""
    found: dict[str, dict[str, ConfidenceInterval]] = {each.name: {} for each in evaluation.systems}
    for rating in ratings:
        found[rating.name].update(rating.scores)
    return tuple(SystemRatings(name, scores) for name, scores in found.items() if scores)


def _paired(
    new: Mapping[int, Mapping[int, int]], other: Mapping[int, Mapping[int, int]]
) -> list[float]:
    """For each sample the mean difference over the raters who rated both answers."""
    found: list[float] = []
    for sample in sorted(new.keys() & other.keys()):
        both = new[sample].keys() & other[sample].keys()
        if both:
            found.append(
                sum(new[sample][rater] - other[sample][rater] for rater in both) / len(both)
            )
    return found


def _interval(
    values: Sequence[float], low: int, high: int, evaluation: Evaluation
) -> ConfidenceInterval:
    """Questions are drawn anew, not ratings: two people on one answer are not two answers."""
    about = evaluation.about
    bootstrap = Bootstrap(len(values), about.confidence, about.resamples, about.seed)
    return bootstrap.interval(bounded_mean(values, low, high))
