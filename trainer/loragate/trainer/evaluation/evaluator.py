"""A whole evaluation, in order: losses, answers, counterfactuals, metrics, requirements.

Losses are measured first, and their models are freed before a server starts, since both need the
same cores and memory.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

import numpy as np
from rich.progress import Progress
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.example import Example
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.contenders import (
    TFIDF,
    TITLES,
    Prompt,
    Prompting,
    prompts_with_examples,
    prompts_with_retrieval,
    tfidf_answers,
)
from loragate.trainer.evaluation.counterfactuals import (
    Counterfactual,
    Outcome,
    change_scores,
    make_counterfactuals,
    outcome,
)
from loragate.trainer.evaluation.criteria import criteria_of
from loragate.trainer.evaluation.evaluation import (
    About,
    Evaluation,
    Labels,
    LabelScores,
    Sample,
    SystemScores,
    TestSet,
)
from loragate.trainer.evaluation.losses import (
    Loss,
    adapted,
    conversation_losses,
    general_paragraphs,
    row_losses,
    supervised_text,
)
from loragate.trainer.evaluation.metrics import rated
from loragate.trainer.evaluation.own_metrics import OwnMetric, own_metrics
from loragate.trainer.evaluation.requirements import Requirement, check_requirements
from loragate.trainer.evaluation.scores import (
    Answer,
    bleu_signature,
    folded,
    label_in,
    label_scores,
    overlap_scores,
    text_scores,
)
from loragate.trainer.evaluation.served import ServedModels
from loragate.trainer.evaluation.statistics import (
    Bootstrap,
    ConfidenceInterval,
    Statistic,
    exp,
    ratio,
)
from loragate.trainer.settings import CostSettings, EvaluationSettings, resolved
from loragate.trainer.training.encoding import Encoder, supervised
from loragate.trainer.training.models import free_device_memory, load_to_measure
from loragate.trainer.training.plan import with_answer_limit

SystemName = Literal["base", "examples", "retrieval", "first", "champion", "new"]
_OTHER: Final = "(no label)"
_SET_TITLES: Final = {"far": "test rows far from every train row"}


@dataclass(frozen=True, slots=True)
class System:
    """One of the models that are compared. `model` is the folder of a base model or of a fully
    trained one, `adapter` that of an adapter for it, if there is one. `served_as` is its name on
    the server that answers for it, `title` what reports call it. `prompting` says which training
    rows stand before its questions; the losses of such a system are not measured. `digest` is that
    of the version that has to answer on a server which runs already, where it is known.
    """

    name: SystemName
    title: str
    model: Path
    adapter: Path | None
    served_as: str
    prompting: Prompting = ""
    digest: str = ""


OpenModels = Callable[[Sequence[System]], AbstractAsyncContextManager[ServedModels]]
"""Starts a server of systems that share a base model, or connects to one, for a block."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The systems and the rows that they are compared on.

    `systems` begin with the base and end with the new one; those that share a model are neighbours.
    `rows` are the whole test split; none of them was trained on. `train` is the training split, for
    contenders that use it; their prompts have at most `longest_prompt` tokens. `device` is for the
    losses, `served_by` for the report, `prices` for what requests cost. `far` says of each row
    whether every train row is far from it, `sets` are more rows by name, and `left_out` says which
    rows were known to something. Metrics of one's own are looked for in `root`.
    """

    title: str
    base: BaseModel
    systems: tuple[System, ...]
    rows: Sequence[Example]
    renderer: Renderer
    data_digest: str
    served_by: str
    device: str = "cpu"
    train: Sequence[Example] = ()
    longest_prompt: int = sys.maxsize
    prices: CostSettings = field(default_factory=CostSettings)
    far: Sequence[bool] = ()
    sets: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    left_out: str = ""
    root: Path = Path()

    def prompts_of(self, system: System, rows: Sequence[Example], examples: int) -> list[Prompt]:
        """What the system is asked for each of these rows."""
        if not system.prompting:
            return [row.messages[:-1] for row in rows]
        make = prompts_with_examples if system.prompting == "examples" else prompts_with_retrieval
        return make(rows, self.train, examples, self._fits)

    def _fits(self, prompt: Prompt, tools: str) -> bool:
        row = Example(prompt, tools=tools)
        ids = self.renderer.render(row.turns(), tools=row.tool_list())
        return len(ids) <= self.longest_prompt


@dataclass(frozen=True, slots=True)
class _Responses:
    """One system's answers to the rows, and the outcomes of its counterfactuals."""

    answers: list[Answer]
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class _Losses:
    """One system's losses on the rows, and on general text."""

    rows: list[Loss]
    general: list[Loss]


async def evaluate(
    comparison: Comparison,
    settings: EvaluationSettings,
    open_models: OpenModels,
    progress: Progress,
) -> Evaluation:
    """Measures every system on the same rows, and checks the requirements of `settings`.

    Raises EvaluationError, and InvalidRequirement before any work is done.
    """
    criteria = criteria_of(settings.rubric)
    own = own_metrics(settings.metrics, comparison.root)
    own_by_name = {each.name: each.metric for each in own}
    more = {**own_by_name, **rated(criteria)}
    requirements = [Requirement.parse(sentence, more) for sentence in settings.require]
    encoded = Encoder(comparison.renderer, sys.maxsize, "drop").encode(comparison.rows, "test")
    settings = with_answer_limit(settings, [encoded])
    start = time.monotonic()
    places = _chosen(comparison.rows, settings)
    rows = [comparison.rows[place] for place in places]
    labels = _labels(rows, settings)
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
    measuring = _Measuring(comparison, settings, asked, losses, responses, own)
    systems, differences = measuring.on(range(len(rows)), labels)
    found_sets = tuple(
        TestSet(name, _SET_TITLES.get(name, name), len(numbers), *measuring.on(numbers, None))
        for name, numbers in sets.items()
        if len(numbers) > 1
    )
    new = comparison.systems[-1].name
    return Evaluation(
        about=_about(comparison, settings, len(rows), len(general), time.monotonic() - start),
        systems=systems,
        differences=differences,
        labels=_label_table(responses[new].answers[: len(rows)], rows, labels) if labels else None,
        counterfactuals=tuple(responses[new].outcomes),
        samples=_samples(comparison, rows, responses, settings.samples),
        requirements=check_requirements(
            requirements,
            systems[-1].metrics,
            differences,
            more,
            {each.name: (each.systems[-1].metrics, each.differences) for each in found_sets},
        ),
        criteria=criteria,
        sets=found_sets,
        own=own_by_name,
    )


class _Measuring:
    """The figures of all systems on some of the rows that were asked."""

    def __init__(
        self,
        comparison: Comparison,
        settings: EvaluationSettings,
        rows: Sequence[Example],
        losses: Mapping[str, _Losses],
        responses: Mapping[str, _Responses],
        own: Sequence[OwnMetric],
    ) -> None:
        self._comparison = comparison
        self._settings = settings
        self._rows = rows
        self._losses = losses
        self._responses = responses
        self._own = own
        self._bootstraps = _Bootstraps(settings)

    def on(
        self, numbers: Sequence[int], labels: tuple[str, ...] | None
    ) -> tuple[tuple[SystemScores, ...], dict[str, dict[str, ConfidenceInterval]]]:
        """Of the rows with these numbers, each system's scores and the new one's differences.
        Without `labels` those of the rows count, and counterfactuals do not.
        """
        rows = [self._rows[number] for number in numbers]
        known = _own_labels(rows) if labels is None else labels
        systems = self._comparison.systems
        scores: dict[str, dict[str, Statistic]] = {}
        for system in systems:
            responses = self._responses[system.name]
            answers = [responses.answers[number] for number in numbers]
            outcomes = responses.outcomes if labels is not None else []
            losses = self._losses.get(system.name)
            if losses is not None:
                losses = _Losses([losses.rows[number] for number in numbers], losses.general)
            scores[system.name] = _scores(
                losses, self._losses["base"], _Responses(answers, outcomes), rows, known
            ) | {each.name: each.statistic(rows, answers) for each in self._own}
        titles = {system.name: system.title for system in systems}
        new, train = systems[-1].name, self._comparison.train
        said = (
            tfidf_answers(rows, train, known)
            if known and TFIDF in self._settings.contenders and train
            else None
        )
        if said is not None:
            own = scores.pop(new)  # the new one stays the last
            wanted = [row.label or row.answer for row in rows]
            scores |= {TFIDF: label_scores(said, wanted, known), new: own}
            titles[TFIDF] = TITLES[TFIDF]
        measured = {name: self._bootstraps.intervals(found) for name, found in scores.items()}
        prices = self._comparison.prices
        return tuple(
            SystemScores(name, titles[name], found, _request_money(found, prices))
            for name, found in measured.items()
        ), {
            name: self._bootstraps.differences(scores[new], scores[name])
            for name in scores
            if name != new
        }


def _chosen(rows: Sequence[Example], settings: EvaluationSettings) -> list[int]:
    """The places of the rows that are asked."""
    if not rows:
        raise EvaluationError("the test split is empty, so nothing can be measured; add examples")
    if not settings.max_rows or len(rows) <= settings.max_rows:
        return list(range(len(rows)))
    return random.Random(settings.seed).sample(range(len(rows)), settings.max_rows)


def _labels(rows: Sequence[Example], settings: EvaluationSettings) -> tuple[str, ...]:
    """The labels of the settings, or those of the rows. Raises EvaluationError."""
    if settings.labels:
        _check_labels(rows, settings.labels)
        return settings.labels
    return _own_labels(rows)


def _own_labels(rows: Sequence[Example]) -> tuple[str, ...]:
    """The labels of the rows, if every row has one. Of spellings that differ in case only, the
    commonest stands for all.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if not row.label:
            return ()
        spellings[folded(row.label)][row.label] += 1
    return tuple(
        sorted(max(each, key=lambda label: (each[label], label)) for each in spellings.values())
    )


def _check_labels(rows: Sequence[Example], labels: tuple[str, ...]) -> None:
    """Raises EvaluationError for labels that cannot be told apart, and for one that a row wants and
    `labels` lacks.
    """
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(folded(label), label)
        if not folded(label) or other is not label:
            raise EvaluationError(
                f"[evaluation] labels: {other!r} and {label!r} cannot be told apart, since answers "
                "may differ in case; leave one of them out"
                if folded(label)
                else "[evaluation] labels: a label is empty; leave it out"
            )
    unknown = Counter(
        row.label for row in rows if row.label and label_in(row.label, labels) is None
    )
    if unknown:
        label, count = unknown.most_common(1)[0]
        raise EvaluationError(
            f"[evaluation] labels lacks {label!r}, which {count} test rows want, so none of their "
            "answers could be right; add it, or leave the setting out"
        )


def _measure_losses(
    comparison: Comparison, rows: Sequence[Example], general: Sequence[str], progress: Progress
) -> Mapping[str, _Losses]:
    wanted = [supervised(comparison.renderer, row) for row in rows]
    texts = [supervised_text(comparison.renderer, paragraph) for paragraph in general]
    count = sum(map(len, wanted))
    plain = [system for system in comparison.systems if not system.prompting]
    task = progress.add_task("Losses", total=len(plain) * (count + len(texts)))

    def done(count: int) -> None:
        progress.advance(task, count)

    losses: dict[str, _Losses] = {}
    # A model is loaded once for all its systems: groupby joins neighbours only.
    for path, group in groupby(plain, key=lambda system: system.model):
        model = load_to_measure(path, comparison.device)
        for each in group:
            with nullcontext(model) if each.adapter is None else adapted(model, each.adapter) as m:
                losses[each.name] = _Losses(
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
) -> Mapping[str, _Responses]:
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
    responses: dict[str, _Responses] = {}
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
                responses[each.name] = _Responses(answers[: len(rows)], outcomes)
    return responses


def _outcomes(
    asked: Sequence[Counterfactual], answers: Sequence[Answer], labels: tuple[str, ...]
) -> list[Outcome]:
    return [
        outcome(counterfactual, (answers[3 * n], answers[3 * n + 1], answers[3 * n + 2]), labels)
        for n, counterfactual in enumerate(asked)
    ]


def _scores(
    losses: _Losses | None,
    base: _Losses,
    responses: _Responses,
    rows: Sequence[Example],
    labels: tuple[str, ...],
) -> dict[str, Statistic]:
    scores: dict[str, Statistic] = {}
    if losses is not None:
        loss = ratio([each.nats for each in losses.rows], [each.tokens for each in losses.rows])
        scores |= {"loss": loss, "perplexity": exp(loss)}
    wanted = [row.answer for row in rows]
    if labels:
        scores |= label_scores(responses.answers, [row.label or row.answer for row in rows], labels)
    else:
        scores |= overlap_scores(responses.answers, wanted)
    scores |= text_scores(responses.answers, wanted)
    if losses is not None:
        pairs = zip(losses.general, base.general, strict=True)
        scores["forgetting"] = ratio(
            [one.nats - other.nats for one, other in pairs],
            [each.tokens for each in losses.general],
        )
    if responses.outcomes:
        scores |= change_scores(responses.outcomes)
    return scores


def _request_money(measured: Mapping[str, ConfidenceInterval], prices: CostSettings) -> float:
    """Of one request, by its tokens; 0 where prices are not known, or no model reads a prompt."""
    if "prompt" not in measured:
        return 0.0
    prompt, answer = measured["prompt"].estimate, measured["length"].estimate
    return (prompt * prices.million_prompt_tokens + answer * prices.million_answer_tokens) / 1e6


class _Bootstraps:
    """One bootstrap for each number of rows: statistics over the same rows share their resamples,
    which makes their differences paired.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self._settings = settings
        self._made: dict[int, Bootstrap] = {}

    def intervals(self, scores: Mapping[str, Statistic]) -> dict[str, ConfidenceInterval]:
        return {name: self._of(each).interval(each) for name, each in scores.items()}

    def differences(
        self, new: Mapping[str, Statistic], baseline: Mapping[str, Statistic]
    ) -> dict[str, ConfidenceInterval]:
        """Of the metrics that both have."""
        return {
            name: self._of(each).difference(each, baseline[name])
            for name, each in new.items()
            if name in baseline
        }

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
    wanted = [label_in(row.label or row.answer, labels) or _OTHER for row in rows]
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
    comparison: Comparison, rows: Sequence[Example], responses: Mapping[str, _Responses], count: int
) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            "\n\n".join(f"{turn.role}: {turn.content}" for turn in row.messages[:-1]),
            row.answer,
            {each.name: responses[each.name].answers[n].text for each in comparison.systems},
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
