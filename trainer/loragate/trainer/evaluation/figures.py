"""The figures of an evaluation: every system's scores on some rows, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loragate.trainer.data.example import Example
from loragate.trainer.evaluation.comparison import Comparison
from loragate.trainer.evaluation.contenders import TFIDF, TITLES, tfidf_answers
from loragate.trainer.evaluation.counterfactuals import Outcome, change_scores
from loragate.trainer.evaluation.evaluation import SystemScores
from loragate.trainer.evaluation.labels import own_labels
from loragate.trainer.evaluation.losses import Loss
from loragate.trainer.evaluation.own_metrics import OwnMetric
from loragate.trainer.evaluation.scores import Answer, label_scores, overlap_scores, text_scores
from loragate.trainer.evaluation.statistics import (
    Bootstrap,
    ConfidenceInterval,
    Statistic,
    exp,
    ratio,
)
from loragate.trainer.settings import CostSettings, EvaluationSettings


@dataclass(frozen=True, slots=True)
class Responses:
    """One system's answers to the rows, and the outcomes of its counterfactuals."""

    answers: list[Answer]
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class Losses:
    """One system's losses on the rows, and on general text."""

    rows: list[Loss]
    general: list[Loss]


class Figures:
    """The figures of all systems on some of the rows that were asked."""

    def __init__(
        self,
        comparison: Comparison,
        settings: EvaluationSettings,
        rows: Sequence[Example],
        losses: Mapping[str, Losses],
        responses: Mapping[str, Responses],
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
        known = own_labels(rows) if labels is None else labels
        systems = self._comparison.systems
        scores: dict[str, dict[str, Statistic]] = {}
        for system in systems:
            responses = self._responses[system.name]
            answers = [responses.answers[number] for number in numbers]
            outcomes = responses.outcomes if labels is not None else []
            losses = self._losses.get(system.name)
            if losses is not None:
                losses = Losses([losses.rows[number] for number in numbers], losses.general)
            scores[system.name] = _scores(
                losses, self._losses["base"], Responses(answers, outcomes), rows, known
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


def _scores(
    losses: Losses | None,
    base: Losses,
    responses: Responses,
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
