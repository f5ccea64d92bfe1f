"""Mentions of demographic groups, and their associations with labels, praise and blame.

An association is a table of two by two (the row mentions the group or not, has the label or not),
tested by Fisher's exact test. Those are reported that remain when false discoveries are controlled
at 5 % (Benjamini and Hochberg). An association says nothing about its cause.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import exp, log, sqrt

from loragate.adapters.rendering.turns import SYSTEM_ROLES
from loragate.trainer.data.example import Example

_LEVEL = 0.05
_WORD = re.compile(r"\w+")
_FEWEST_MENTIONS = 5  # rows; below, no association is tried


@dataclass(frozen=True, slots=True)
class Mentions:
    """In how many rows a group is named, and their share of all rows, from 0 to 1."""

    group: str
    kind: str
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class Association:
    """A group and a trait that occur together. `share_with` of the rows that name the group have
    the trait, `share_without` of the others, from 0 to 1.

    `odds_ratio` has a 95 % interval from `low` to `high`; `p` is adjusted for all tests made.
    """

    group: str
    trait: str
    rows: int
    share_with: float
    share_without: float
    odds_ratio: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Words:
    """What mentions a group or a sentiment: `pattern` in a text without what `excluded` finds.

    A text is only searched where it has one of `first`: the first words of what is looked for, of
    which one that ends in a star stands for any ending.
    """

    pattern: re.Pattern[str]
    excluded: re.Pattern[str] | None
    first: frozenset[str]

    @classmethod
    def of(cls, words: Sequence[str], excluded: Sequence[str]) -> "Words":
        first = frozenset(re.split(r"[^\w*]", word)[0] for word in words)
        return cls(_any_of(words), _any_of(excluded) if excluded else None, first)

    def are_in(self, text: str) -> bool:
        if self.excluded is not None:
            text = self.excluded.sub(" ", text)
        return self.pattern.search(text) is not None


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words for each group and each sentiment; `kinds` has each group's kind."""

    groups: Mapping[str, Words]
    kinds: Mapping[str, str]
    sentiment: Mapping[str, Words]

    @classmethod
    def load(cls) -> "Lexicon":
        text = files("loragate.trainer.data").joinpath("demographics.toml").read_text("utf-8")
        words = tomllib.loads(text)
        sentiment = words["sentiment"]
        return cls(
            {
                name: Words.of(group["words"], group.get("not", []))
                for name, group in words["groups"].items()
            },
            {name: str(group["kind"]) for name, group in words["groups"].items()},
            {
                name: Words.of(sentiment[name], sentiment.get(f"not_{name}", []))
                for name in ("praise", "blame")
            },
        )


def mentions_of(examples: Sequence[Example], lexicon: Lexicon) -> list[Mentions]:
    """Every group that some row names, the most frequent first."""
    return _mentions(_named(examples, lexicon), lexicon, len(examples))


def associations_of(examples: Sequence[Example], lexicon: Lexicon) -> list[Association]:
    """Associations that are significant at 5 % after adjustment, the lowest p first."""
    return mentions_and_associations(examples, lexicon)[1]


def mentions_and_associations(
    examples: Sequence[Example], lexicon: Lexicon
) -> tuple[list[Mentions], list[Association]]:
    """Both, with one look into each text."""
    named = _named(examples, lexicon)
    traits = _traits(examples, lexicon)
    mentions = _mentions(named, lexicon, len(examples))
    tried = [
        _associate(group, rows, trait, with_trait, len(examples))
        for group, rows in named.items()
        if _FEWEST_MENTIONS <= len(rows) < len(examples)
        for trait, with_trait in traits.items()
        if 0 < len(with_trait) < len(examples)
    ]
    if not tried:
        return mentions, []
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control([association.p for association in tried])
    told = [
        replace(association, p=float(p))
        for association, p in zip(tried, adjusted, strict=True)
        if p <= _LEVEL
    ]
    return mentions, sorted(told, key=lambda association: (association.p, association.group))


def _mentions(named: Mapping[str, set[int]], lexicon: Lexicon, total: int) -> list[Mentions]:
    found = [
        Mentions(group, lexicon.kinds[group], len(rows), len(rows) / total)
        for group, rows in named.items()
        if rows
    ]
    return sorted(found, key=lambda mention: (-mention.rows, mention.group))


def _named(examples: Sequence[Example], lexicon: Lexicon) -> dict[str, set[int]]:
    return _rows_with(examples, lexicon.groups)


def _rows_with(examples: Sequence[Example], lists: Mapping[str, Words]) -> dict[str, set[int]]:
    """The rows that have a word of each list. Each different word is looked up once, and only the
    lists that it may belong to are searched for, so that many rows take little time.
    """
    exact: dict[str, set[str]] = {}
    stems: list[tuple[str, str]] = []
    for name, words in lists.items():
        for word in words.first:
            if word.endswith("*"):
                stems.append((word[:-1], name))
            else:
                exact.setdefault(word, set()).add(name)
    known: dict[str, frozenset[str]] = {}
    found: dict[str, set[int]] = {name: set() for name in lists}
    for row, example in enumerate(examples):
        text = _text(example)
        tried: set[str] = set()
        for word in set(_WORD.findall(text.lower())):
            names = known.get(word)
            if names is None:
                begun = (name for stem, name in stems if word.startswith(stem))
                names = known[word] = frozenset((*exact.get(word, ()), *begun))
            tried |= names
        for name in tried:
            if lists[name].are_in(text):
                found[name].add(row)
    return found


def _traits(examples: Sequence[Example], lexicon: Lexicon) -> dict[str, set[int]]:
    traits: dict[str, set[int]] = {}
    for label in sorted({example.label for example in examples if example.label is not None}):
        traits[f"label {label}"] = set()
    for row, example in enumerate(examples):
        if example.label is not None:
            traits[f"label {example.label}"].add(row)
    for name, rows in _rows_with(examples, lexicon.sentiment).items():
        traits[f"words of {name}"] = rows
    return traits


def _associate(
    group: str, rows: set[int], trait: str, with_trait: set[int], total: int
) -> Association:
    both = len(rows & with_trait)
    only_group, only_trait = len(rows) - both, len(with_trait) - both
    neither = total - both - only_group - only_trait
    from scipy.stats import fisher_exact  # slow to import, and of no use without groups

    tested = fisher_exact([[both, only_group], [only_trait, neither]])
    p = float(tested.pvalue)  # pyright: ignore[reportAttributeAccessIssue] - not in its stub
    # Haldane's half keeps a ratio where a cell is empty.
    cells = [count + 0.5 for count in (both, only_group, only_trait, neither)]
    ratio = cells[0] * cells[3] / (cells[1] * cells[2])
    spread = 1.96 * sqrt(sum(1 / cell for cell in cells))
    return Association(
        group,
        trait,
        len(rows),
        both / len(rows),
        only_trait / (total - len(rows)),
        ratio,
        exp(log(ratio) - spread),
        exp(log(ratio) + spread),
        p,
    )


def _text(example: Example) -> str:
    """All turns but the system prompt, in which no writer names a person."""
    return "\n".join(turn.content for turn in example.messages if turn.role not in SYSTEM_ROLES)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    patterns = (re.escape(word).replace(r"\*", r"\w*").replace(r"\ ", r"\s+") for word in words)
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)
