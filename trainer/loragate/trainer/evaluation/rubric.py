"""Sheets on which people rate answers, and the ratings that are read back from them.

A sheet has the answers of all systems in one random order, without the systems' names. Each rater
fills in a copy. For two raters or more, Krippendorff's alpha measures their agreement: 1 is full
agreement, 0 what chance gives.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import Evaluation, Ratings, SystemRatings
from loragate.trainer.evaluation.statistics import Bootstrap, ConfidenceInterval, mean

CRITERIA: Final = ("accuracy", "helpfulness", "tone")
_COLUMNS: Final = ("item", "prompt", "wanted", "answer", *CRITERIA, "comment")
_SCALE: Final = ("1", "2", "3", "4", "5")


def write_sheet(evaluation: Evaluation, path: Path) -> int:
    """Writes a CSV file of all samples to fill in, and returns the number of answers in it. Raises
    EvaluationError.
    """
    rows = [
        (_item(evaluation, index, name), sample.prompt, sample.wanted, answer)
        for index, sample in enumerate(evaluation.samples)
        for name, answer in sample.answers.items()
    ]
    random.Random(evaluation.about.seed).shuffle(rows)
    try:
        # Spreadsheets take a file without a byte order mark for another encoding than UTF-8.
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows((*row, *[""] * (len(CRITERIA) + 1)) for row in rows)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror}") from error
    return len(rows)


def read_sheets(evaluation: Evaluation, paths: Sequence[Path]) -> Ratings:
    """Reads what raters filled in, one file a rater. Rows without any number are skipped.

    Raises EvaluationError with the file and the row.
    """
    owner = {
        _item(evaluation, index, name): name
        for index, sample in enumerate(evaluation.samples)
        for name in sample.answers
    }
    scores = [
        (item, criterion, score)
        for path in paths
        for item, criterion, score in _read_sheet(path, owner.keys())
    ]
    if not scores:
        raise EvaluationError("the sheets are empty; fill the numbers 1 to 5 in, then read them")
    by_unit: dict[tuple[str, str], list[int]] = defaultdict(list)
    for item, criterion, score in scores:
        by_unit[item, criterion].append(score)
    systems = tuple(
        _system_ratings(evaluation, system.name, by_unit, owner) for system in evaluation.systems
    )
    agreement = {
        criterion: krippendorff_alpha(
            [scores for (_, of), scores in by_unit.items() if of == criterion]
        )
        for criterion in CRITERIA
        if len(paths) > 1
    }
    rated = {item for item, _ in by_unit}
    return Ratings(tuple(path.stem for path in paths), len(rated), systems, agreement)


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float:
    """For numbers on an interval scale. A unit has the scores of all raters for one thing; those
    with one score do not count. 1.0 where no two scores differ.
    """
    pairable = [unit for unit in units if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    if len(values) < 2:
        return 1.0
    observed = sum(_squares(unit) / (len(unit) - 1) for unit in pairable) / len(values)
    expected = _squares(values) / (len(values) * (len(values) - 1))
    return 1.0 - observed / expected if expected else 1.0


def _squares(values: Sequence[int]) -> float:
    """The sum over ordered pairs of the square of their difference."""
    total, squares = sum(values), sum(value * value for value in values)
    return 2.0 * (len(values) * squares - total * total)


def _system_ratings(
    evaluation: Evaluation,
    name: str,
    by_unit: Mapping[tuple[str, str], Sequence[int]],
    owner: Mapping[str, str],
) -> SystemRatings:
    about = evaluation.about
    scores: dict[str, ConfidenceInterval] = {}
    for criterion in CRITERIA:
        # Answers are resampled, not ratings: two people on one answer are not two answers.
        means = [
            sum(given) / len(given)
            for (item, of), given in by_unit.items()
            if of == criterion and owner[item] == name
        ]
        if means:
            bootstrap = Bootstrap(len(means), about.confidence, about.resamples, about.seed)
            scores[criterion] = bootstrap.interval(mean(means))
    return SystemRatings(name, scores)


def _read_sheet(path: Path, items: Iterable[str]) -> list[tuple[str, str, int]]:
    """Item, criterion and score, of each score that was filled in."""
    known = set(items)
    scores: list[tuple[str, str, int]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path} cannot be read as CSV: {error}") from error
    for number, row in enumerate(rows, start=2):
        item = (row.get("item") or "").strip()
        if item not in known:
            raise EvaluationError(
                f"{path}, row {number}: {item!r} is no answer of this evaluation; use the sheet "
                "that was written with it"
            )
        for criterion in CRITERIA:
            score = (row.get(criterion) or "").strip()
            if score and score not in _SCALE:
                raise EvaluationError(
                    f"{path}, row {number}: {criterion} is {score!r}; give a number from 1 to 5"
                )
            if score:
                scores.append((item, criterion, int(score)))
    return scores


def _item(evaluation: Evaluation, index: int, name: str) -> str:
    """The id of an answer in a sheet: it does not reveal the system, and no other evaluation has
    it.
    """
    about = evaluation.about
    text = f"{about.title}\0{about.finished_at}\0{index}\0{name}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]
