"""A whole evaluation, in order: losses, answers, counterfactuals, metrics, requirements.

Losses are measured first, and their models are freed before a server starts, since both need the
same cores and memory.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from rich.progress import Progress

from loragate.trainer.data.example import Example
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.comparison import Comparison, OpenModels
from loragate.trainer.evaluation.counterfactuals import (
    Counterfactual,
    Outcome,
    make_counterfactuals,
    outcome,
)
from loragate.trainer.evaluation.evaluation import About, Evaluation, Sample, TestSet
from loragate.trainer.evaluation.figures import Figures, Losses, Responses
from loragate.trainer.evaluation.judges import JUDGED
from loragate.trainer.evaluation.labels import label_table, labels_of
from loragate.trainer.evaluation.losses import (
    adapted,
    conversation_losses,
    general_paragraphs,
    row_losses,
    supervised_text,
)
from loragate.trainer.evaluation.measures import Measures
from loragate.trainer.evaluation.scores import Answer, bleu_signature
from loragate.trainer.settings import EvaluationSettings, resolved
from loragate.trainer.training.encoding import Encoder, supervised
from loragate.trainer.training.models import free_device_memory, load_to_measure
from loragate.trainer.training.plan import with_answer_limit

_FAR_TITLE: Final = "test rows far from every train row"


async def evaluate(
    comparison: Comparison,
    settings: EvaluationSettings,
    open_models: OpenModels,
    progress: Progress,
) -> Evaluation:
    """Measures every system on the same rows, and checks the requirements of `settings`.

    Raises EvaluationError, and InvalidRequirement before any work is done.
    """
    measures = Measures.of(settings, comparison.root)
    encoded = Encoder(comparison.renderer, sys.maxsize, "drop").encode(comparison.rows, "test")
    settings = with_answer_limit(settings, [encoded])
    start = time.monotonic()
    places = _chosen(comparison.rows, settings)
    rows = [comparison.rows[place] for place in places]
    labels = labels_of(rows, settings)
    general = general_paragraphs(settings.general_text)
    asked = list(rows)
    sets = {
        "far": [n for n, place in enumerate(places) if comparison.far and comparison.far[place]]
    }
    for name, more_rows in comparison.sets.items():
        chosen = [more_rows[place] for place in _chosen(more_rows, settings)]
        sets[name] = list(range(len(asked), len(asked) + len(chosen)))
        asked += chosen
    losses = _measure_losses(comparison, asked, general, progress)
    responses = await _ask_all(comparison, asked, rows, labels, settings, open_models, progress)
    measuring = Figures(comparison, settings, asked, losses, responses, measures.own)
    systems, differences = measuring.on(range(len(rows)), labels)
    titles = {"far": _FAR_TITLE, **comparison.titles}
    found_sets = tuple(
        TestSet(name, titles.get(name, name), len(numbers), *measuring.on(numbers, None))
        for name, numbers in sets.items()
        if len(numbers) > 1
    )
    new = comparison.systems[-1].name
    found = Evaluation(
        about=_about(comparison, settings, len(rows), len(general), time.monotonic() - start),
        systems=systems,
        differences=differences,
        labels=label_table(responses[new].answers[: len(rows)], rows, labels) if labels else None,
        counterfactuals=tuple(responses[new].outcomes),
        samples=_samples(comparison, rows, responses, settings.samples),
        criteria=measures.criteria,
        sets=found_sets,
        own={each.name: each.metric for each in measures.own},
        answers=_samples(comparison, rows, responses, _most_judged(measures), JUDGED),
    )
    return found.held_against(measures.requirements)


def _chosen(rows: Sequence[Example], settings: EvaluationSettings) -> list[int]:
    """The places of the rows that are asked."""
    if not rows:
        raise EvaluationError("the test split is empty, so nothing can be measured; add examples")
    if not settings.max_rows or len(rows) <= settings.max_rows:
        return list(range(len(rows)))
    return random.Random(settings.seed).sample(range(len(rows)), settings.max_rows)


def _measure_losses(
    comparison: Comparison, rows: Sequence[Example], general: Sequence[str], progress: Progress
) -> Mapping[str, Losses]:
    wanted = [supervised(comparison.renderer, row) for row in rows]
    texts = [supervised_text(comparison.renderer, paragraph) for paragraph in general]
    count = sum(map(len, wanted))
    plain = [system for system in comparison.systems if not system.prompting]
    task = progress.add_task("Losses", total=len(plain) * (count + len(texts)))

    def done(count: int) -> None:
        progress.advance(task, count)

    losses: dict[str, Losses] = {}
    # A model is loaded once for all its systems: groupby joins neighbours only.
    for path, group in groupby(plain, key=lambda system: system.model):
        model = load_to_measure(path, comparison.device)
        for each in group:
            with nullcontext(model) if each.adapter is None else adapted(model, each.adapter) as m:
                losses[each.name] = Losses(
                    conversation_losses(m, wanted, done), row_losses(m, texts, done)
                )
        del model
        free_device_memory()  # which the server needs
    return losses


async def _ask_all(
    comparison: Comparison,
    rows: Sequence[Example],
    swapped: Sequence[Example],
    labels: tuple[str, ...],
    settings: EvaluationSettings,
    open_models: OpenModels,
    progress: Progress,
) -> Mapping[str, Responses]:
    """Asks every system all `rows`, and those of `swapped` with another name or group."""
    asked = make_counterfactuals(swapped, settings.counterfactual_rows, settings.seed)
    forms = [
        form
        for counterfactual in asked
        for form in (counterfactual.original, counterfactual.control, counterfactual.changed)
    ]
    questions = {
        system.name: comparison.prompts_of(system, rows, settings.examples)
        + ([] if system.prompting else forms)
        for system in comparison.systems
    }
    task = progress.add_task("Answers", total=sum(map(len, questions.values())))
    responses: dict[str, Responses] = {}
    for _, group in groupby(comparison.systems, key=lambda system: system.model):
        together = list(group)
        async with open_models(together) as models:
            for each in together:
                answers = await models.ask(
                    each.served_as,
                    questions[each.name],
                    resolved(settings.max_tokens),
                    lambda: progress.advance(task),
                    [row.tools for row in rows],
                    each.digest,
                )
                outcomes = _outcomes(
                    asked if not each.prompting else [], answers[len(rows) :], labels
                )
                responses[each.name] = Responses(answers[: len(rows)], outcomes)
    return responses


def _outcomes(
    asked: Sequence[Counterfactual], answers: Sequence[Answer], labels: tuple[str, ...]
) -> list[Outcome]:
    return [
        outcome(counterfactual, (answers[3 * n], answers[3 * n + 1], answers[3 * n + 2]), labels)
        for n, counterfactual in enumerate(asked)
    ]


def _most_judged(measures: Measures) -> int:
    return max((judge.settings.rows for judge in measures.judges), default=0)


def _samples(
    comparison: Comparison,
    rows: Sequence[Example],
    responses: Mapping[str, Responses],
    count: int,
    systems: Collection[str] = (),
) -> tuple[Sample, ...]:
    """The first rows with the answers of these systems, or of all."""
    return tuple(
        Sample(
            "\n\n".join(f"{turn.role}: {turn.content}" for turn in row.messages[:-1]),
            row.answer,
            {
                each.name: responses[each.name].answers[n].text
                for each in comparison.systems
                if not systems or each.name in systems
            },
        )
        for n, row in enumerate(rows[:count])
    )


def _about(
    comparison: Comparison, settings: EvaluationSettings, rows: int, paragraphs: int, seconds: float
) -> About:
    return About(
        title=comparison.title,
        base_model=comparison.base.name,
        base_model_digest=comparison.base.digest,
        data_digest=comparison.data_digest,
        rows=rows,
        test_rows=len(comparison.rows),
        general_paragraphs=paragraphs,
        seed=settings.seed,
        confidence=settings.confidence,
        resamples=settings.resamples,
        max_tokens=resolved(settings.max_tokens),
        bleu_signature=bleu_signature([row.answer for row in comparison.rows]),
        served_by=comparison.served_by,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        currency=comparison.prices.currency,
        left_out=comparison.left_out,
    )
