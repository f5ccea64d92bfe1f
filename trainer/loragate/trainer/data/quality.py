"""Measures data, and says in findings whether they are enough, varied and fair."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_matrix

from loragate.trainer.data.demographics import (
    Association,
    Lexicon,
    Mentions,
    mentions_and_associations,
)
from loragate.trainer.data.example import Example, row_digest
from loragate.trainer.data.settings import QualityLimits, Track, untracked
from loragate.trainer.data.similarity import own_lines_of, questions_of

if TYPE_CHECKING:
    from loragate.adapters.rendering.renderer import Renderer

_MOST_TOPICS = 12
_ROWS_PER_TOPIC = 25
_WORDS = 4  # in a topic's name
_MOST_FEATURES = 5_000
_MOST_FITTED = 10_000  # rows that the topics' centres are found from
Level = Literal["refuse", "warn", "note", "good"]
_WORST_FIRST: tuple[Level, ...] = ("refuse", "warn", "note")
_THIN_TOPIC = 0.02  # of all rows
_RARE_LABEL = 20  # rows
_UNBALANCED = 10  # times as many rows of one label as of another
_FEW_OPENINGS = 0.1  # different first three words, per row
_UNIFORM = 0.15  # deviation of the length, as a share of its mean
_VERDICTS = frozenset({"0", "1", "-1", "true", "false"})
_TOLD = 5  # associations that get a sentence each


@dataclass(frozen=True, slots=True)
class Topic:
    """A cluster of rows. `words` are those that are most frequent compared with other clusters."""

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
    # Slow to import, and of no use for few rows.
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    # k-means starts from rows picked by number, so they are sorted by what they say.
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
    # The centres of a part of many rows are those of all.
    step = max(1, len(texts) // _MOST_FITTED)
    clusters = KMeans(n_clusters=count, random_state=0).fit(weights[::step])
    labels = np.asarray(clusters.predict(weights))
    words = list(vectors.get_feature_names_out())
    found = [
        _topic(words, np.asarray(clusters.cluster_centers_), number, labels)
        for number in range(count)
    ]
    return sorted((topic for topic in found if topic.rows), key=lambda topic: -topic.rows)


def effective_number(counts: Sequence[int]) -> float:
    """How many equally large parts would be as varied: e to the power of the entropy."""
    total = sum(counts)
    shares = [count / total for count in counts if count]
    return exp(-sum(share * log(share) for share in shares))


def _topic(words: Sequence[object], centres: np.ndarray, number: int, labels: np.ndarray) -> Topic:
    others = np.delete(centres, number, axis=0).mean(axis=0)
    telling = np.argsort(centres[number] - others)[::-1][:_WORDS]
    rows = int((labels == number).sum())
    return Topic(tuple(str(words[at]) for at in telling), rows, rows / len(labels))


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about the data, and how serious it is."""

    level: Level
    subject: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """Words of each row's question and answer."""

    questions: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of each row with the base model's tokenizer and template, and the run's limit."""

    limit: int
    per_row: tuple[int, ...]

    @property
    def rows_over(self) -> int:
        return sum(length > self.limit for length in self.per_row)

    @property
    def share_cut(self) -> float:
        cut = sum(max(0, length - self.limit) for length in self.per_row)
        return cut / sum(self.per_row)


@dataclass(frozen=True, slots=True)
class Quality:
    """Everything that was measured. `tokens` is None where there was no renderer to count with."""

    rows: int
    findings: tuple[Finding, ...]
    labels: tuple[tuple[str, int], ...]
    lengths: Lengths
    topics: tuple[Topic, ...]
    openings: int  # different first three words
    mentions: tuple[Mentions, ...]
    associations: tuple[Association, ...]
    tokens: Tokens | None

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        found = {finding.level for finding in self.findings}
        for level in _WORST_FIRST:
            if level in found:
                return level
        return "good"

    @property
    def summary(self) -> str:
        match self.level:
            case "refuse":
                return "Not to be trained on"
            case "warn":
                return "Usable, with warnings"
            case "note":
                return "Good to train on, with remarks"
            case "good":
                return "Good to train on"

    def to_json(self) -> dict[str, object]:
        questions, answers = self.lengths.questions, self.lengths.answers
        return {
            "summary": self.summary,
            "level": self.level,
            "rows": self.rows,
            "findings": [asdict(finding) for finding in self.findings],
            "labels": dict(self.labels),
            "words_per_question": _quantiles(questions),
            "words_per_answer": _quantiles(answers),
            "topics": [asdict(topic) for topic in self.topics],
            "openings": self.openings,
            "mentions": [asdict(mention) for mention in self.mentions],
            "associations": [asdict(association) for association in self.associations],
            "tokens": _tokens_json(self.tokens),
        }


def assess_quality(
    examples: Sequence[Example],
    limits: QualityLimits,
    renderer: "Renderer | None" = None,
    track: Track = untracked,
) -> Quality:
    """Measures the rows against `limits`. Poor data raise nothing: the findings say so."""
    lexicon = Lexicon.load()
    labels = Counter(example.label for example in examples if example.label is not None)
    lengths = Lengths(
        tuple(len(example.prompt.split()) for example in examples),
        tuple(len(example.answer.split()) for example in examples),
    )
    topics = topics_of(examples)
    openings = len({tuple(question.split()[:3]) for question in own_lines_of(examples)})
    mentions, associations = mentions_and_associations(examples, lexicon) if examples else ([], [])
    tokens = _tokens(examples, limits, renderer, track) if renderer and examples else None
    return Quality(
        rows=len(examples),
        findings=(
            *findings_on_volume(len(examples), limits),
            *_on_labels(labels, len(examples)),
            *_on_labels_and_answers(examples),
            *_on_variety(topics, lengths, openings),
            *_on_groups(associations),
            *_on_tokens(tokens),
        ),
        labels=tuple(sorted(labels.items(), key=lambda item: (-item[1], item[0]))),
        lengths=lengths,
        topics=tuple(topics),
        openings=openings,
        mentions=tuple(mentions),
        associations=tuple(associations),
        tokens=tokens,
    )


def _tokens(
    examples: Sequence[Example], limits: QualityLimits, renderer: "Renderer", track: Track
) -> Tokens:
    lengths = [
        len(
            renderer.render(example.turns(), tools=example.tool_list(), add_generation_prompt=False)
        )
        for example in track(examples, description="Counting tokens")
    ]
    return Tokens(limits.max_tokens, tuple(lengths))


def findings_on_volume(rows: int, limits: QualityLimits) -> list[Finding]:
    """The finding on the number of rows."""
    if rows < limits.refuse_below:
        return [
            Finding(
                "refuse",
                "Volume",
                f"{rows} rows are too few to learn from; collect at least {limits.refuse_below}, "
                f"better {limits.warn_below:,}.",
            )
        ]
    if rows < limits.warn_below:
        return [
            Finding(
                "warn",
                "Volume",
                f"{rows:,} rows are few: below {limits.warn_below:,} an adapter often learns the "
                "examples instead of the task. Watch the validation loss, and collect more.",
            )
        ]
    if rows < limits.note_below:
        return [
            Finding(
                "note",
                "Volume",
                f"{rows:,} rows are enough for one narrow task; a broad one wants "
                f"{limits.note_below:,} and more.",
            )
        ]
    return [Finding("good", "Volume", f"{rows:,} rows.")]


def _on_labels(labels: Counter[str], rows: int) -> list[Finding]:
    if not labels:
        return []
    found: list[Finding] = []
    most, least = labels.most_common()[0], labels.most_common()[-1]
    if len(labels) == 1:
        found.append(
            Finding("warn", "Labels", f"Every labelled row is {most[0]!r}: nothing to tell apart.")
        )
    elif most[1] >= _UNBALANCED * least[1]:
        found.append(
            Finding(
                "warn",
                "Labels",
                f"{most[0]!r} has {most[1]:,} rows and {least[0]!r} {least[1]:,}: the adapter will "
                "prefer the frequent one. Collect more of the rare.",
            )
        )
    if rare := sorted(label for label, count in labels.items() if count < _RARE_LABEL):
        found.append(
            Finding(
                "warn",
                "Labels",
                f"Fewer than {_RARE_LABEL} rows have {_listed(rare)}: a test on one or two of them "
                "says little.",
            )
        )
    if (unlabelled := rows - labels.total()) and not found:
        found.append(Finding("note", "Labels", f"{unlabelled:,} rows have no label."))
    if not found:
        found.append(Finding("good", "Labels", f"{len(labels)} labels, evenly enough spread."))
    return found


def _on_labels_and_answers(examples: Sequence[Example]) -> list[Finding]:
    """Whether the labels are what the answers say, which accuracy is measured by."""
    labelled = [example for example in examples if example.label is not None]
    said = sum(_says(example) for example in labelled)
    if not labelled or said * 2 >= len(labelled):
        return []
    names = sorted({str(example.label) for example in labelled})
    is_verdict = {name.casefold() for name in names} <= _VERDICTS
    first = labelled[0]
    return [
        Finding(
            "refuse" if is_verdict else "warn",
            "Accuracy",
            f"The labels ({_listed(names)}) are not what the answers say (the label "
            f"{first.label!r} has the answer {first.answer[:40]!r}), so accuracy can only be 0. "
            + (
                "Do they say whether answers are good, or are they numbers of classes? Give the "
                "class's name as the answer and the label"
                if is_verdict
                else "Give the class as the answer, or name another field of labels"
            )
            + ' (--label-field ""; [data] label_field: none).',
        )
    ]


def _says(example: Example) -> bool:
    label, answer = str(example.label).casefold(), example.answer.casefold()
    return (
        label == answer.strip()
        or re.search(rf"(?<!\w){re.escape(label)}(?!\w)", answer) is not None
    )


def _on_variety(topics: list[Topic], lengths: Lengths, openings: int) -> list[Finding]:
    rows = len(lengths.questions)
    found: list[Finding] = []
    if thin := [topic for topic in topics if topic.share < _THIN_TOPIC]:
        found.append(
            Finding(
                "note",
                "Topics",
                f"Under 2 % of the rows each are about: {'; '.join(t.name for t in thin)}.",
            )
        )
    elif topics:
        effective = effective_number([topic.rows for topic in topics])
        found.append(
            Finding(
                "good",
                "Topics",
                f"{len(topics)} topics, as varied as {effective:.1f} equally large ones.",
            )
        )
    if rows and openings < _FEW_OPENINGS * rows:
        found.append(
            Finding(
                "warn",
                "Variety",
                f"{rows:,} questions begin in only {openings:,} ways; the adapter may learn the "
                "pattern of the questions. Add rows that people wrote.",
            )
        )
    if rows > 1 and np.std(lengths.questions) < _UNIFORM * np.mean(lengths.questions):
        found.append(
            Finding(
                "note",
                "Lengths",
                "The questions are nearly all of one length; real ones will not be.",
            )
        )
    return found


def _on_groups(associations: list[Association]) -> list[Finding]:
    found = [
        Finding(
            "warn",
            "Groups of people",
            f"Of the {one.rows} rows that name {one.group}, {one.share_with:.0%} have "
            f"{one.trait}; of the others {one.share_without:.0%} (odds ratio {one.odds_ratio:.1f}, "
            f"95 % interval {one.low:.1f} to {one.high:.1f}). The adapter will learn this; is it "
            "meant?",
        )
        for one in associations[:_TOLD]
    ]
    if len(associations) > _TOLD:
        more = len(associations) - _TOLD
        found.append(Finding("warn", "Groups of people", f"{more} more such associations."))
    return found or [
        Finding(
            "good",
            "Groups of people",
            "No group of people goes together with a label, praise or blame beyond chance.",
        )
    ]


def _on_tokens(tokens: Tokens | None) -> list[Finding]:
    if tokens is None:
        return [
            Finding(
                "note",
                "Tokens",
                "Not counted, as no base model was given; prepare one, or name it with --model.",
            )
        ]
    if tokens.rows_over:
        return [
            Finding(
                "warn",
                "Tokens",
                f"{tokens.rows_over:,} rows are longer than {tokens.limit:,} tokens; a cut there "
                f"would lose {tokens.share_cut:.1%} of all tokens, so a run refuses such rows or "
                "drops them. Shorten them, or raise the limit.",
            )
        ]
    return [
        Finding(
            "good",
            "Tokens",
            f"{sum(tokens.per_row):,} tokens; the longest row has {max(tokens.per_row):,} and the "
            f"limit is {tokens.limit:,}, so nothing is cut.",
        )
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _quantiles(counts: Sequence[int]) -> dict[str, float]:
    if not counts:
        return {}
    names = {"least": 0, "p25": 25, "median": 50, "p75": 75, "p95": 95, "most": 100}
    return {name: float(np.percentile(counts, at)) for name, at in names.items()}


def _tokens_json(tokens: Tokens | None) -> dict[str, object] | None:
    if tokens is None:
        return None
    return {
        "limit": tokens.limit,
        "total": sum(tokens.per_row),
        "rows_over": tokens.rows_over,
        "share_cut": tokens.share_cut,
        "per_row": _quantiles(tokens.per_row),
    }
