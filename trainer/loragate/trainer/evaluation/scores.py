"""Scores of answers against the wanted ones: exact match, labels, BLEU, ROUGE, stop rate, length.

Every function returns `Statistic`s, whose values are the numbers that scikit-learn, sacrebleu or
rouge-score give for the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from loragate.trainer.evaluation.statistics import Floats, Statistic, mean, share

_EDGES = re.compile(r"^[\s\"'`*.:!]+|[\s\"'`*.:!]+$")
_ORDER: Final = 4  # BLEU's longest n-gram
_ROUGES: Final = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


@dataclass(frozen=True, slots=True)
class Answer:
    """`is_ended` where the model ended its turn, and not the limit of tokens."""

    text: str
    is_ended: bool
    tokens: int


def plain(text: str) -> str:
    """The text as it is compared: in lower case, with single spaces, no marks around it."""
    return _EDGES.sub("", " ".join(text.split()).casefold())


def label_in(answer: str, labels: tuple[str, ...]) -> str | None:
    """The label that the whole answer is, if it is one; a label within a sentence is none."""
    said = plain(answer)
    return next((label for label in labels if plain(label) == said), None)


def text_scores(answers: Sequence[Answer], wanted: Sequence[str]) -> dict[str, Statistic]:
    """The scores of answers of any kind, by their names in `metrics.METRICS`."""
    pairs = list(zip(answers, wanted, strict=True))
    return {
        "exact_match": share([plain(answer.text) == plain(text) for answer, text in pairs]),
        "stop_rate": share([answer.is_ended for answer in answers]),
        "length": mean([answer.tokens for answer in answers]),
    }


def overlap_scores(answers: Sequence[Answer], wanted: Sequence[str]) -> dict[str, Statistic]:
    """BLEU and ROUGE, from 0 to 100, for answers that are sentences."""
    return {"bleu": _bleu(answers, wanted), **_rouge(answers, wanted)}


def label_scores(
    answers: Sequence[Answer], wanted: Sequence[str], labels: tuple[str, ...]
) -> dict[str, Statistic]:
    """Accuracy and macro F1 over `labels`; an answer that is none of them is wrong for its row."""
    said = [label_in(answer.text, labels) for answer in answers]
    hits = share([one == other for one, other in zip(said, wanted, strict=True)])
    return {"accuracy": hits, "f1": _macro_f1(said, wanted, labels)}


def bleu_signature() -> str:
    """How BLEU is computed, in sacrebleu's notation."""
    metric = _metric()
    metric.corpus_score(["a"], [["a"]])  # the number of references is known only then
    return str(metric.get_signature())


def _metric() -> BLEU:
    return BLEU(max_ngram_order=_ORDER)


def _bleu(answers: Sequence[Answer], wanted: Sequence[str]) -> Statistic:
    metric = _metric()
    rows: list[list[float]] = []
    for answer, text in zip(answers, wanted, strict=True):
        found = metric.corpus_score([answer.text], [[text]])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return Statistic(np.array(rows, dtype=np.float64), _bleu_of)


def _bleu_of(sums: Floats) -> Floats:
    flat = sums.reshape(-1, sums.shape[-1])
    scores = [
        BLEU.compute_bleu(
            correct=[int(count) for count in row[:_ORDER]],
            total=[int(total) for total in row[_ORDER : 2 * _ORDER]],
            sys_len=int(row[-2]),
            ref_len=int(row[-1]),
            max_ngram_order=_ORDER,
        ).score
        for row in flat
    ]
    return np.array(scores).reshape(sums.shape[:-1])


def _rouge(answers: Sequence[Answer], wanted: Sequence[str]) -> Mapping[str, Statistic]:
    scorer = RougeScorer(list(_ROUGES), use_stemmer=False)
    found = [scorer.score(text, answer.text) for answer, text in zip(answers, wanted, strict=True)]
    return {
        ours: mean([100 * score[theirs].fmeasure for score in found])
        for theirs, ours in _ROUGES.items()
    }


def _macro_f1(
    said: Sequence[str | None], wanted: Sequence[str], labels: tuple[str, ...]
) -> Statistic:
    """Columns of zeros and ones: right, said and wanted, for each label."""
    rows = np.zeros((len(said), 3, len(labels)))
    for row, (one, other) in enumerate(zip(said, wanted, strict=True)):
        for column, label in enumerate(labels):
            rows[row, :, column] = (one == label == other, one == label, other == label)
    return Statistic(rows.reshape(len(said), -1), _f1_of)


def _f1_of(sums: Floats) -> Floats:
    right, said, wanted = np.split(sums, 3, axis=-1)
    total = said + wanted
    return np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0).mean(axis=-1)
