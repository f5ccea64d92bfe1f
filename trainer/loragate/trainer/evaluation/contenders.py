"""What an adapter has to beat: examples in the prompt, retrieved rows, and a classifier of words.

`examples` are the same training rows before every question, `retrieval` those that are nearest to
it by BM25, both as earlier turns of the base model's conversation. `tfidf` is no language model: a
logistic regression on the words of the question, which takes a second to fit.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from loragate.trainer.data.example import Example, Message
from loragate.trainer.evaluation.scores import Answer, label_in
from loragate.trainer.evaluation.words import words

Prompting = Literal["", "examples", "retrieval"]
Prompt = tuple[Message, ...]
Fits = Callable[[Prompt, str], bool]
"""Whether a prompt with these tools, as `Example` has them, is short enough."""

TFIDF: Final = "tfidf"
TITLES: Final = {
    "examples": "base, {} examples in the prompt",
    "retrieval": "base, {} rows retrieved",
    TFIDF: "TF-IDF, logistic regression",
}

_BM25_LENGTH: Final = 0.75  # b: how much a long text counts less
_BM25_REPEATS: Final = 1.5  # k1: how fast repeats of a word stop counting
_MOST_ROWS: Final = 20_000  # that are searched, or that a classifier is fitted to
_MOST_FEATURES: Final = 50_000
_SEED: Final = 0


def prompts_with_examples(
    rows: Sequence[Example], train: Sequence[Example], count: int, fits: Fits
) -> list[Prompt]:
    """Each row's prompt after `count` training rows, or fewer where they do not fit. Where rows
    have labels, each label has its turn.
    """
    chosen = _spread_over_labels(train, count)
    return [_behind(row, chosen, fits) for row in rows]


def prompts_with_retrieval(
    rows: Sequence[Example], train: Sequence[Example], count: int, fits: Fits
) -> list[Prompt]:
    """Each row's prompt after the `count` training rows that are nearest to it, or fewer where they
    do not fit; the nearest stands last.
    """
    train = _bounded(train)
    likeness = bm25([each.prompt for each in train], [row.prompt for row in rows])
    found: list[Prompt] = []
    for row, scores in zip(rows, likeness, strict=True):
        best = np.argsort(-scores, kind="stable")[:count]
        found.append(_behind(row, [train[int(place)] for place in best[::-1]], fits))
    return found


def bm25(texts: Sequence[str], queries: Sequence[str]) -> NDArray[np.float64]:
    """float64 of (queries, texts): how well each text answers each query (Okapi BM25, with Lucene's
    idf, which is never negative).
    """
    counter = CountVectorizer(analyzer=words)  # pyright: ignore[reportArgumentType]
    try:
        counts = csr_matrix(counter.fit_transform(texts), dtype=np.float64)
    except ValueError:  # no text has a word
        return np.zeros((len(queries), len(texts)))
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    entries = counts.tocoo()
    having = np.bincount(entries.col, minlength=len(counter.vocabulary_))
    idf = np.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
    relative = lengths / lengths.mean()
    damping = _BM25_REPEATS * (1 - _BM25_LENGTH + _BM25_LENGTH * relative[entries.row])
    weights = idf[entries.col] * entries.data * (_BM25_REPEATS + 1) / (entries.data + damping)
    weighted = csr_matrix((weights, (entries.row, entries.col)), shape=counts.shape)
    asked = csr_matrix(counter.transform(queries), dtype=np.float64)
    asked.data[:] = 1.0  # a query has each word once
    return np.asarray((asked @ weighted.T).todense())


def tfidf_answers(
    rows: Sequence[Example], train: Sequence[Example], labels: tuple[str, ...]
) -> list[Answer] | None:
    """The label of each row as a classifier of its words says it, fitted to the training rows; None
    where these have fewer than two labels.
    """
    known = [
        (each.prompt, label)
        for each in _bounded(train)
        if (label := label_in(each.label or each.answer, labels)) is not None
    ]
    if len({label for _, label in known}) < 2:
        return None
    # Words in any script, and pairs of them.
    classifier = make_pipeline(
        TfidfVectorizer(
            analyzer=_words_and_pairs,  # pyright: ignore[reportArgumentType]  # takes functions
            sublinear_tf=True,
            max_features=_MOST_FEATURES,
        ),
        LogisticRegression(C=10.0, max_iter=300, random_state=_SEED),
    )
    classifier.fit([text for text, _ in known], [label for _, label in known])
    said = classifier.predict([row.prompt for row in rows])
    return [Answer(str(label), True, 0) for label in said]


def _words_and_pairs(text: str) -> list[str]:
    found = words(text) or [text.strip()]
    return found + [f"{one} {other}" for one, other in pairwise(found)]


def _bounded(train: Sequence[Example]) -> Sequence[Example]:
    if len(train) <= _MOST_ROWS:
        return train
    return random.Random(_SEED).sample(list(train), _MOST_ROWS)


def _spread_over_labels(train: Sequence[Example], count: int) -> list[Example]:
    order = list(train)
    random.Random(_SEED).shuffle(order)
    by_label: dict[str | None, list[Example]] = defaultdict(list)
    for each in order:
        by_label[each.label].append(each)
    chosen: list[Example] = []
    while len(chosen) < min(count, len(order)):
        for rows in by_label.values():
            if rows and len(chosen) < count:
                chosen.append(rows.pop())
    return chosen


def _behind(row: Example, chosen: Sequence[Example], fits: Fits) -> Prompt:
    """The row's prompt behind as many of the chosen rows, the last ones first, as fit."""
    prompt = row.messages[:-1]
    system = tuple(turn for turn in prompt[:1] if turn.role == "system")
    asked = prompt[len(system) :]
    for start in range(len(chosen)):
        turns = tuple(
            turn for each in chosen[start:] for turn in each.messages if turn.role != "system"
        )
        if fits((*system, *turns, *asked), row.tools):
            return (*system, *turns, *asked)
    return prompt
