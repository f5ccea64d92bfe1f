"""What the rows are about: clusters of words that come together, each named by its own words."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

from loragate.trainer.data.example import Example, row_digest
from loragate.trainer.data.likeness import questions_of

_MOST_TOPICS = 12
_ROWS_PER_TOPIC = 25
_WORDS = 4  # in a topic's name
_MOST_FEATURES = 5_000


@dataclass(frozen=True, slots=True)
class Topic:
    """`words` are those that tell it from the others."""

    words: tuple[str, ...]
    rows: int
    share: float

    @property
    def name(self) -> str:
        return ", ".join(self.words)


def topics_of(examples: Sequence[Example]) -> list[Topic]:
    """The largest topic first; none where the rows are too few or have no words in common."""
    count = min(_MOST_TOPICS, len(examples) // _ROWS_PER_TOPIC)
    if count < 2:
        return []
    # In an order of their own, since k-means starts from rows picked by number.
    texts = questions_of(sorted(examples, key=row_digest))
    vectors = TfidfVectorizer(
        stop_words="english", min_df=2, max_df=0.5, max_features=_MOST_FEATURES, sublinear_tf=True
    )
    try:
        weights = csr_matrix(vectors.fit_transform(texts))
    except ValueError:
        return []  # no word stands in two rows
    distinct = {(row.indices.tobytes(), row.data.tobytes()) for row in weights}  # pyright: ignore[reportAttributeAccessIssue]
    count = min(count, len(distinct))
    # One start is enough: k-means++ spreads it, and the seed fixes it.
    clusters = KMeans(n_clusters=count, random_state=0).fit(weights)
    words = list(vectors.get_feature_names_out())
    found = [
        _topic(words, np.asarray(clusters.cluster_centers_), number, np.asarray(clusters.labels_))
        for number in range(count)
    ]
    return sorted((topic for topic in found if topic.rows), key=lambda topic: -topic.rows)


def effective_number(counts: Sequence[int]) -> float:
    """How many equally large parts would be as varied: the exponential of the entropy."""
    total = sum(counts)
    shares = [count / total for count in counts if count]
    return exp(-sum(share * log(share) for share in shares))


def _topic(words: Sequence[object], centres: np.ndarray, number: int, labels: np.ndarray) -> Topic:
    others = np.delete(centres, number, axis=0).mean(axis=0)
    telling = np.argsort(centres[number] - others)[::-1][:_WORDS]
    rows = int((labels == number).sum())
    return Topic(tuple(str(words[at]) for at in telling), rows, rows / len(labels))
