"""All of an evaluation, in order: losses, answers, counterfactuals, numbers, verdict.

Losses come first and their models are let go of before a server starts: the two would share the
same cores and memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

import numpy as np
from rich.progress import Progress
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.example import Example
from loragate.trainer.evaluation.answers import Answer, label_in
from loragate.trainer.evaluation.contenders import Contender
from loragate.trainer.evaluation.counterfactuals import (
    Outcome,
    Trial,
    change_scores,
    outcome,
    trials,
)
from loragate.trainer.evaluation.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import (
    About,
    ContenderScores,
    Evaluation,
    Labels,
    LabelScores,
    Sample,
)
from loragate.trainer.evaluation.general_text import paragraphs
from loragate.trainer.evaluation.losses import (
    Loss,
    adapted,
    load_model,
    row_losses,
    supervised_text,
)
from loragate.trainer.evaluation.requirements import Requirement, judge
from loragate.trainer.evaluation.scores import (
    bleu_signature,
    label_scores,
    overlap_scores,
    text_scores,
)
from loragate.trainer.evaluation.served import ServedModels
from loragate.trainer.evaluation.statistics import Bootstrap, Interval, Statistic, exp, ratio
from loragate.trainer.settings.evaluation import EvaluationSettings

OpenModels = Callable[[Sequence[Contender]], AbstractAsyncContextManager[ServedModels]]
"""Makes a server of contenders that share a base model."""

_OTHER: Final = "(no label)"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared on what. `contenders` begin with the base and end with the new one; `rows`
    are the whole test split, and none of them was trained on. `served_by` is for the report.
    """

    title: str
    base: BaseModel
    contenders: tuple[Contender, ...]
    rows: Sequence[Example]
    renderer: Renderer
    data_digest: str
    served_by: str
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class _Heard:
    """Of one contender: what it said to the rows, and what to the trials."""

    answers: list[Answer]
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class _Read:
    """Of one contender: its losses on the rows, and on general text."""

    rows: list[Loss]
    general: list[Loss]


async def evaluate(
    plan: Plan, settings: EvaluationSettings, open_models: OpenModels, progress: Progress
) -> Evaluation:
    """Raises EvaluationError, and InvalidRequirement before any work is done."""
    requirements = [Requirement.parse(sentence) for sentence in settings.require]
    start = time.monotonic()
    rows = _chosen(plan.rows, settings)
    labels = _labels(rows, settings)
    general = paragraphs(settings.general_text)
    read = _read_all(plan, rows, general, progress)
    heard = await _hear_all(plan, rows, labels, settings, open_models, progress)
    scores = {
        contender.name: _scores(
            read[contender.name], read["base"], heard[contender.name], rows, labels
        )
        for contender in plan.contenders
    }
    bootstraps = _Bootstraps(settings)
    measured = {name: bootstraps.intervals(found) for name, found in scores.items()}
    new = plan.contenders[-1].name
    differences = {
        rival: bootstraps.differences(scores[new], scores[rival])
        for rival in scores
        if rival != new
    }
    return Evaluation(
        about=_about(plan, settings, len(rows), len(general), time.monotonic() - start),
        contenders=tuple(
            ContenderScores(each.name, each.title, measured[each.name]) for each in plan.contenders
        ),
        differences=differences,
        labels=_label_table(heard[new].answers, rows, labels) if labels else None,
        counterfactuals=tuple(heard[new].outcomes),
        samples=_samples(plan, rows, heard, settings.samples),
        verdict=judge(requirements, measured[new], differences),
    )


def _chosen(rows: Sequence[Example], settings: EvaluationSettings) -> list[Example]:
    if not rows:
        raise EvaluationError("the test split is empty, so nothing can be measured; add examples")
    if not settings.max_rows or len(rows) <= settings.max_rows:
        return list(rows)
    return random.Random(settings.seed).sample(list(rows), settings.max_rows)


def _labels(rows: Sequence[Example], settings: EvaluationSettings) -> tuple[str, ...]:
    """Given, or those of the rows if every row has one."""
    if settings.labels:
        return settings.labels
    found = {row.label for row in rows}
    return tuple(sorted(label for label in found if label)) if None not in found else ()


def _read_all(
    plan: Plan, rows: Sequence[Example], general: Sequence[str], progress: Progress
) -> Mapping[str, _Read]:
    wanted = [plan.renderer.supervise(row.turns()) for row in rows]
    texts = [supervised_text(plan.renderer, paragraph) for paragraph in general]
    task = progress.add_task("Losses", total=len(plan.contenders) * (len(rows) + len(texts)))

    def done(count: int) -> None:
        progress.advance(task, count)

    read: dict[str, _Read] = {}
    for path, group in groupby(plan.contenders, key=lambda contender: contender.model):
        model = load_model(path, plan.device)
        for each in group:
            with nullcontext(model) if each.adapter is None else adapted(model, each.adapter) as m:
                read[each.name] = _Read(row_losses(m, wanted, done), row_losses(m, texts, done))
    return read


async def _hear_all(
    plan: Plan,
    rows: Sequence[Example],
    labels: tuple[str, ...],
    settings: EvaluationSettings,
    open_models: OpenModels,
    progress: Progress,
) -> Mapping[str, _Heard]:
    asked = trials(rows, settings.counterfactual_rows, settings.seed)
    prompts = [row.messages[:-1] for row in rows]
    prompts += [form for trial in asked for form in (trial.original, trial.control, trial.changed)]
    task = progress.add_task("Answers", total=len(plan.contenders) * len(prompts))
    heard: dict[str, _Heard] = {}
    for _, group in groupby(plan.contenders, key=lambda contender: contender.model):
        together = list(group)
        async with open_models(together) as models:
            for each in together:
                answers = await models.ask(
                    each.served_as, prompts, settings.max_tokens, lambda: progress.advance(task)
                )
                outcomes = _outcomes(asked, answers[len(rows) :], labels)
                heard[each.name] = _Heard(answers[: len(rows)], outcomes)
    return heard


def _outcomes(
    asked: Sequence[Trial], answers: Sequence[Answer], labels: tuple[str, ...]
) -> list[Outcome]:
    return [
        outcome(trial, (answers[3 * n], answers[3 * n + 1], answers[3 * n + 2]), labels)
        for n, trial in enumerate(asked)
    ]


def _scores(
    read: _Read, base: _Read, heard: _Heard, rows: Sequence[Example], labels: tuple[str, ...]
) -> dict[str, Statistic]:
    loss = ratio([each.nats for each in read.rows], [each.tokens for each in read.rows])
    scores = {"loss": loss, "perplexity": exp(loss)}
    wanted = [row.answer for row in rows]
    if labels:
        scores |= label_scores(heard.answers, [row.label or row.answer for row in rows], labels)
    else:
        scores |= overlap_scores(heard.answers, wanted)
    scores |= text_scores(heard.answers, wanted)
    scores["forgetting"] = ratio(
        [one.nats - other.nats for one, other in zip(read.general, base.general, strict=True)],
        [each.tokens for each in read.general],
    )
    if heard.outcomes:
        scores |= change_scores(heard.outcomes)
    return scores


class _Bootstraps:
    """One bootstrap for each number of rows, so that all metrics of a test set share theirs."""

    def __init__(self, settings: EvaluationSettings) -> None:
        self._settings = settings
        self._made: dict[int, Bootstrap] = {}

    def intervals(self, scores: Mapping[str, Statistic]) -> dict[str, Interval]:
        return {name: self._of(each).interval(each) for name, each in scores.items()}

    def differences(
        self, new: Mapping[str, Statistic], rival: Mapping[str, Statistic]
    ) -> dict[str, Interval]:
        return {name: self._of(each).difference(each, rival[name]) for name, each in new.items()}

    def _of(self, statistic: Statistic) -> Bootstrap:
        rows, settings = len(statistic.rows), self._settings
        if rows not in self._made:
            self._made[rows] = Bootstrap(
                rows, settings.confidence, settings.resamples, settings.seed
            )
        return self._made[rows]


def _label_table(
    answers: Sequence[Answer], rows: Sequence[Example], labels: tuple[str, ...]
) -> Labels:
    wanted = [row.label or row.answer for row in rows]
    said = [label_in(answer.text, labels) or _OTHER for answer in answers]
    precision, recall, f1, counts = (
        np.asarray(column).tolist()
        for column in precision_recall_fscore_support(
            wanted,
            said,
            labels=list(labels),
            zero_division=0.0,  # pyright: ignore[reportArgumentType]  # typed by its default, "warn"
        )
    )
    confusion = confusion_matrix(wanted, said, labels=[*labels, _OTHER])[:-1]
    return Labels(
        tuple(
            LabelScores(label, int(counts[n]), precision[n], recall[n], f1[n])
            for n, label in enumerate(labels)
        ),
        tuple(tuple(int(count) for count in row) for row in confusion),
    )


def _samples(
    plan: Plan, rows: Sequence[Example], heard: Mapping[str, _Heard], count: int
) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            "\n\n".join(f"{turn.role}: {turn.content}" for turn in row.messages[:-1]),
            row.answer,
            {each.name: heard[each.name].answers[n].text for each in plan.contenders},
        )
        for n, row in enumerate(rows[:count])
    )


def _about(
    plan: Plan, settings: EvaluationSettings, rows: int, paragraphs: int, seconds: float
) -> About:
    return About(
        title=plan.title,
        base_model=plan.base.name,
        base_model_digest=plan.base.digest,
        data_digest=plan.data_digest,
        rows=rows,
        test_rows=len(plan.rows),
        general_paragraphs=paragraphs,
        seed=settings.seed,
        confidence=settings.confidence,
        resamples=settings.resamples,
        max_tokens=settings.max_tokens,
        bleu_signature=bleu_signature(),
        served_by=plan.served_by,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
    )
