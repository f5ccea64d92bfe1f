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

from loragate.trainer.evaluation.statistics import Floats, Statistic, bounded_mean, mean, share
from loragate.trainer.evaluation.words import bleu_tokens, words

# ASCII marks, and those of other scripts: quotes, full stops, colons, Arabic and Indian ends.
_MARKS = (
    r"[\s\"'`*.:!"
    "\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e\u3002\uff0e"
    "\uff01\uff1a\u060c\u061f\u06d4\u0964\u00bf\u00a1\u300c\u300d]+"
)
_EDGES = re.compile(f"^{_MARKS}|{_MARKS}$")
_ORDER: Final = 4  # BLEU's longest n-gram
_ROUGES: Final = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


@dataclass(frozen=True, slots=True)
class Answer:
    """`is_ended` where the model ended its turn, and not the limit of tokens. `prompt_tokens` is 0
    where no prompt was read.
    """

    text: str
    is_ended: bool
    tokens: int
    prompt_tokens: int = 0


def plain(text: str) -> str:
    """The text as it is compared: in lower case, with single spaces, no marks around it."""
    return _EDGES.sub("", folded(text))


def label_in(answer: str, labels: tuple[str, ...]) -> str | None:
    """The label that the whole answer is, if it is one; a label within a sentence is none.

    A label that is spelt exactly so comes first, then one that differs in case, then one that
    differs in marks around it. What could be two labels is none.
    """
    said = answer.strip()
    if said in labels:
        return said
    for alike in (folded, plain):
        found = [label for label in labels if alike(label) == alike(said) != ""]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def folded(text: str) -> str:
    """In lower case, with single spaces."""
    return " ".join(text.split()).casefold()


def text_scores(answers: Sequence[Answer], wanted: Sequence[str]) -> dict[str, Statistic]:
    """The scores of answers of any kind, by their names in `metrics.METRICS`."""
    pairs = list(zip(answers, wanted, strict=True))
    return {
        "exact_match": share([plain(answer.text) == plain(text) for answer, text in pairs]),
        "stop_rate": share([answer.is_ended for answer in answers]),
        "length": mean([answer.tokens for answer in answers]),
        "prompt": mean([answer.prompt_tokens for answer in answers]),
    }


def overlap_scores(answers: Sequence[Answer], wanted: Sequence[str]) -> dict[str, Statistic]:
    """BLEU and ROUGE, from 0 to 100, for answers that are sentences, in any script."""
    return {"bleu": _bleu(answers, wanted), **_rouge(answers, wanted)}


def label_scores(
    answers: Sequence[Answer], wanted: Sequence[str], labels: tuple[str, ...]
) -> dict[str, Statistic]:
    """Accuracy, and macro F1 over those of `labels` that rows want; an answer that is no label is
    wrong for its row. Labels are compared as `label_in` reads them.
    """
    said = [label_in(answer.text, labels) for answer in answers]
    right = [label_in(text, labels) for text in wanted]
    hits = share([one == other is not None for one, other in zip(said, right, strict=True)])
    return {"accuracy": hits, "f1": _macro_f1(said, right, labels)}


def bleu_signature(wanted: Sequence[str]) -> str:
    """How BLEU is computed for these wanted texts, in sacrebleu's notation."""
    metric = _metric(wanted)
    metric.corpus_score(["a"], [["a"]])  # the number of references is known only then
    return str(metric.get_signature())


def rouge_scorer(*rouges: str) -> RougeScorer:
    """rouge-score over the words of any script; its own tokeniser knows ASCII only."""
    return RougeScorer(list(rouges), tokenizer=_Words())


class _Words:
    """As rouge-score wants a tokeniser."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _metric(wanted: Sequence[str]) -> BLEU:
    """For wanted texts most of which are too short to have a 4-gram, BLEU stops at the longest
    n-gram that there is (sacrebleu's effective order); it would be 0 for equal texts otherwise.
    """
    tokens = bleu_tokens(wanted)
    count = BLEU(tokenize=tokens).tokenizer
    short = sum(len(count(text).split()) < _ORDER for text in wanted)
    return BLEU(max_ngram_order=_ORDER, tokenize=tokens, effective_order=2 * short > len(wanted))


def _bleu(answers: Sequence[Answer], wanted: Sequence[str]) -> Statistic:
    metric = _metric(wanted)
    rows: list[list[float]] = []
    for answer, text in zip(answers, wanted, strict=True):
        found = metric.corpus_score([answer.text], [[text]])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])

    def formula(sums: Floats) -> Floats:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [_bleu_of(row, is_effective=metric.effective_order) for row in flat]
        return np.array(scores).reshape(sums.shape[:-1])

    return Statistic(np.array(rows, dtype=np.float64), formula, bounds=(0, 100))


def _bleu_of(sums: Floats, *, is_effective: bool) -> float:
    return BLEU.compute_bleu(
        correct=[int(count) for count in sums[:_ORDER]],
        total=[int(total) for total in sums[_ORDER : 2 * _ORDER]],
        sys_len=int(sums[-2]),
        ref_len=int(sums[-1]),
        effective_order=is_effective,
        max_ngram_order=_ORDER,
    ).score


def _rouge(answers: Sequence[Answer], wanted: Sequence[str]) -> Mapping[str, Statistic]:
    scorer = rouge_scorer(*_ROUGES)
    found = [scorer.score(text, answer.text) for answer, text in zip(answers, wanted, strict=True)]
    return {
        ours: bounded_mean([100 * score[theirs].fmeasure for score in found], 0, 100)
        for theirs, ours in _ROUGES.items()
    }


def _macro_f1(
    said: Sequence[str | None], wanted: Sequence[str | None], labels: tuple[str, ...]
) -> Statistic:
    """Columns of zeros and ones: right, said and wanted, for each label."""
    rows = np.zeros((len(said), 3, len(labels)))
    for row, (one, other) in enumerate(zip(said, wanted, strict=True)):
        for column, label in enumerate(labels):
            rows[row, :, column] = (one == label == other, one == label, other == label)
    counts = rows[:, 2].sum(axis=0)
    return Statistic(
        rows.reshape(len(said), -1),
        _f1_of,
        bounds=(0, 1),
        parts=tuple(int(count) for count in counts if count),
    )


def _f1_of(sums: Floats) -> Floats:
    """The mean over the labels that any row wants; 0 where there are none."""
    right, said, wanted = np.split(sums, 3, axis=-1)
    is_wanted = wanted > 0
    f1 = np.divide(2 * right, said + wanted, out=np.zeros_like(right), where=is_wanted)
    labels = is_wanted.sum(axis=-1)
    return np.divide(f1.sum(axis=-1), labels, out=np.zeros_like(labels, float), where=labels > 0)
