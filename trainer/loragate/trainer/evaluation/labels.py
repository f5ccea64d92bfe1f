"""The labels of a classification: those that rows may have, and how answers did by label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from loragate.trainer.data.example import Example
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import Labels, LabelScores
from loragate.trainer.evaluation.scores import Answer, folded, label_in
from loragate.trainer.settings import EvaluationSettings

_OTHER: Final = "(no label)"


def labels_of(rows: Sequence[Example], settings: EvaluationSettings) -> tuple[str, ...]:
    """The labels of the settings, or those of the rows. Raises EvaluationError."""
    if settings.labels:
        _check_labels(rows, settings.labels)
        return settings.labels
    return own_labels(rows)


def own_labels(rows: Sequence[Example]) -> tuple[str, ...]:
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


def label_table(
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
