"""Has judges look at the answers of an evaluation: their figures beside all others.

Of the base, the champion and the new adapter every answer is scored, and the new one's is compared
with each of the others, in both orders, so that a judge's liking for a place cancels out. Only rows
of which every verdict is there count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import httpx
from rich.progress import Progress

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import (
    Evaluation,
    JudgedAnswer,
    JudgedPairs,
    JudgeReport,
    Sample,
)
from loragate.trainer.evaluation.judge_client import JudgeClient, VerdictFile
from loragate.trainer.evaluation.judges import (
    JUDGED,
    PREFERENCE,
    Judge,
    Question,
    Verdict,
    key_of,
    pair_question,
    score_question,
)
from loragate.trainer.evaluation.statistics import (
    Bootstrap,
    ConfidenceInterval,
    Statistic,
    bounded_mean,
)

_FEWEST_ROWS: Final = 2

Verdicts = Mapping[str, Verdict | None]


async def with_judgements(
    evaluation: Evaluation,
    judges: Sequence[Judge],
    environment: Mapping[str, str],
    verdicts: VerdictFile,
    progress: Progress,
    wait_seconds: float = 1.0,
) -> Evaluation:
    """The evaluation with what the judges say; requirements are not held against it yet. Keys are
    taken from `environment`. A judge that cannot be asked has a report that says why, and no
    figures.
    """
    found = _without_judgements(evaluation)
    for judge in judges:
        found = await _judged(found, judge, environment, verdicts, progress, wait_seconds)
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    """What is asked about one row, by system: its scores, and its comparison with the new one in
    both orders. Equal answers share a question, and are not compared.
    """

    number: int
    scores: Mapping[str, Question]
    pairs: Mapping[str, tuple[Question, Question] | None]

    @property
    def questions(self) -> list[Question]:
        both = [each for pair in self.pairs.values() if pair for each in pair]
        return [*self.scores.values(), *both]


async def _judged(
    evaluation: Evaluation,
    judge: Judge,
    environment: Mapping[str, str],
    verdicts: VerdictFile,
    progress: Progress,
    wait_seconds: float,
) -> Evaluation:
    settings = judge.settings
    wanted = (evaluation.answers or evaluation.samples)[: settings.rows]
    rows = _affordable([_row(judge, n, each) for n, each in enumerate(wanted)], judge, verdicts)
    questions = {each.key(judge): each for row in rows for each in row.questions}
    new = sum(each not in verdicts for each in questions)
    task = progress.add_task(f"Judge {judge.name}", total=new)
    report = JudgeReport(
        judge.name, settings.model, tuple(judge.metrics), len(wanted), calls=new, asked=len(rows)
    )
    try:
        # `base_url` joins paths only where it ends with a slash.
        async with httpx.AsyncClient(
            base_url=settings.url.rstrip("/") + "/", timeout=settings.timeout_seconds
        ) as client:
            key = key_of(judge, environment)
            asking = JudgeClient(judge, client, key, verdicts, wait_seconds)
            said = await asking.ask(list(questions.values()), lambda: progress.advance(task))
    except EvaluationError as away:
        return replace(
            evaluation,
            judges=(*evaluation.judges, replace(report, problem=f"{away}.")),
            own={**evaluation.own, **judge.metrics},
        )
    return _with_report(evaluation, judge, rows, said, report)


def _row(judge: Judge, number: int, sample: Sample) -> _Row:
    answers = {name: sample.answers[name] for name in JUDGED if name in sample.answers}
    own = answers["new"]

    def pair(answer: str) -> tuple[Question, Question] | None:
        if answer.strip() == own.strip():
            return None
        return (
            pair_question(judge, sample.prompt, sample.wanted, (own, answer)),
            pair_question(judge, sample.prompt, sample.wanted, (answer, own)),
        )

    return _Row(
        number,
        {
            name: score_question(judge, sample.prompt, sample.wanted, answer.strip())
            for name, answer in answers.items()
        },
        {name: pair(answer) for name, answer in answers.items() if name != "new"}
        if judge.settings.pairs
        else {},
    )


def _affordable(rows: Sequence[_Row], judge: Judge, verdicts: VerdictFile) -> list[_Row]:
    """The first rows that can be asked about with no more calls than the judge may be asked."""
    asked: set[str] = set()
    for count, row in enumerate(rows):
        keys = {each.key(judge) for each in row.questions}
        asked |= {key for key in keys if key not in verdicts}
        if len(asked) > judge.settings.max_calls:
            return list(rows[:count])
    return list(rows)


def _with_report(
    evaluation: Evaluation,
    judge: Judge,
    rows: Sequence[_Row],
    said: Verdicts,
    report: JudgeReport,
) -> Evaluation:
    whole = [row for row in rows if all(said[each.key(judge)] for each in row.questions)]
    report = replace(
        report,
        rows=len(whole),
        answers=tuple(_answers(judge, whole, said)),
        pairs=tuple(_pairs(judge, whole, said)),
    )
    found = replace(
        evaluation, judges=(*evaluation.judges, report), own={**evaluation.own, **judge.metrics}
    )
    if len(whole) < _FEWEST_ROWS:
        more = "take another model" if len(whole) < len(rows) else "raise max_calls"
        problem = (
            f"the judge {judge.name!r} gave whole verdicts on {len(whole)} of {report.wanted} "
            f"rows, too few to say anything; {more} in {judge.table}."
        )
        return replace(found, judges=(*evaluation.judges, replace(report, problem=problem)))
    return _with_figures(found, judge, whole, said)


def _answers(judge: Judge, rows: Sequence[_Row], said: Verdicts) -> list[JudgedAnswer]:
    return [
        JudgedAnswer(row.number, system, dict(said[question.key(judge)] or {}))
        for row in rows
        for system, question in row.scores.items()
    ]


def _pairs(judge: Judge, rows: Sequence[_Row], said: Verdicts) -> list[JudgedPairs]:
    found: list[JudgedPairs] = []
    for system in rows[0].pairs if rows else ():
        both = [_both_orders(judge, row.pairs[system], said) for row in rows]
        asked = [each for each in both if each is not None]
        firsts = [place for each in asked for place in each if place]
        found.append(
            JudgedPairs(
                system,
                wins=sum(first - second == 2 for first, second in asked),
                losses=sum(first - second == -2 for first, second in asked),
                equal=len(both) - len(asked),
                flipped=sum(first == second != 0 for first, second in asked),
                rows=len(both),
                decided=len(firsts),
                first=sum(place == 1 for place in firsts),
            )
        )
    return found


def _both_orders(
    judge: Judge, pair: tuple[Question, Question] | None, said: Verdicts
) -> tuple[int, int] | None:
    """For either order whether the first place won (1), the second (-1) or none; the new answer
    stands first in the first. None for equal answers.
    """
    if pair is None:
        return None
    first, second = ((said[each.key(judge)] or {})[PREFERENCE] for each in pair)
    return first, second


def _with_figures(
    evaluation: Evaluation, judge: Judge, rows: Sequence[_Row], said: Verdicts
) -> Evaluation:
    about = evaluation.about
    bootstrap = Bootstrap(len(rows), about.confidence, about.resamples, about.seed)
    scores: dict[str, dict[str, Statistic]] = {}
    for system in rows[0].scores:
        verdicts = [said[row.scores[system].key(judge)] or {} for row in rows]
        scores[system] = {
            judge.metric_of(each.name): bounded_mean(
                [float(verdict[each.name]) for verdict in verdicts], each.low, each.high
            )
            for each in judge.criteria
        }
    measured = {
        system: {name: bootstrap.interval(each) for name, each in found.items()}
        for system, found in scores.items()
    }
    differences: dict[str, dict[str, ConfidenceInterval]] = {
        system: {
            name: bootstrap.difference(each, found[name]) for name, each in scores["new"].items()
        }
        for system, found in scores.items()
        if system != "new"
    }
    for system in rows[0].pairs:
        both = [_both_orders(judge, row.pairs[system], said) or (0, 0) for row in rows]
        preferred = bounded_mean([(first - second) / 2 for first, second in both], -1, 1)
        differences[system][judge.metric_of(PREFERENCE)] = bootstrap.interval(preferred)
    return replace(
        evaluation,
        systems=tuple(
            replace(each, metrics={**each.metrics, **measured.get(each.name, {})})
            for each in evaluation.systems
        ),
        differences={
            name: {**found, **differences.get(name, {})}
            for name, found in evaluation.differences.items()
        },
    )


def _without_judgements(evaluation: Evaluation) -> Evaluation:
    """Without what judges said earlier."""
    names = {name for judge in evaluation.judges for name in judge.metrics}

    def kept(found: Mapping[str, ConfidenceInterval]) -> dict[str, ConfidenceInterval]:
        return {name: each for name, each in found.items() if name not in names}

    return replace(
        evaluation,
        systems=tuple(replace(each, metrics=kept(each.metrics)) for each in evaluation.systems),
        differences={name: kept(found) for name, found in evaluation.differences.items()},
        own={name: each for name, each in evaluation.own.items() if name not in names},
        judges=(),
    )
