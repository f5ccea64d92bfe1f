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

from scipy.stats import false_discovery_control, fisher_exact

from loragate.adapters.rendering.turns import SYSTEM_ROLES
from loragate.trainer.data.example import Example

_LEVEL = 0.05
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
class Lexicon:
    """A pattern of words for each group and each sentiment; `kinds` has each group's kind."""

    groups: Mapping[str, re.Pattern[str]]
    kinds: Mapping[str, str]
    sentiment: Mapping[str, re.Pattern[str]]

    @classmethod
    def load(cls) -> "Lexicon":
        text = files("loragate.trainer.data").joinpath("demographics.toml").read_text("utf-8")
        words = tomllib.loads(text)
        return cls(
            {name: _any_of(group["words"]) for name, group in words["groups"].items()},
            {name: str(group["kind"]) for name, group in words["groups"].items()},
            {name: _any_of(found) for name, found in words["sentiment"].items()},
        )


def mentions_of(examples: Sequence[Example], lexicon: Lexicon) -> list[Mentions]:
    """Every group that some row names, the most frequent first."""
    named = _named(examples, lexicon)
    found = [
        Mentions(group, lexicon.kinds[group], len(rows), len(rows) / len(examples))
        for group, rows in named.items()
        if rows
    ]
    return sorted(found, key=lambda mention: (-mention.rows, mention.group))


def associations_of(examples: Sequence[Example], lexicon: Lexicon) -> list[Association]:
    """Associations that are significant at 5 % after adjustment, the lowest p first."""
    traits = _traits(examples, lexicon)
    tried = [
        _associate(group, rows, trait, with_trait, len(examples))
        for group, rows in _named(examples, lexicon).items()
        if _FEWEST_MENTIONS <= len(rows) < len(examples)
        for trait, with_trait in traits.items()
        if 0 < len(with_trait) < len(examples)
    ]
    if not tried:
        return []
    adjusted = false_discovery_control([association.p for association in tried])
    told = [
        replace(association, p=float(p))
        for association, p in zip(tried, adjusted, strict=True)
        if p <= _LEVEL
    ]
    return sorted(told, key=lambda association: (association.p, association.group))


def _named(examples: Sequence[Example], lexicon: Lexicon) -> dict[str, set[int]]:
    texts = [_text(example) for example in examples]
    return {
        group: {row for row, text in enumerate(texts) if pattern.search(text)}
        for group, pattern in lexicon.groups.items()
    }


def _traits(examples: Sequence[Example], lexicon: Lexicon) -> dict[str, set[int]]:
    labels = sorted({example.label for example in examples if example.label is not None})
    traits = {
        f"label {label}": {row for row, e in enumerate(examples) if e.label == label}
        for label in labels
    }
    for name, pattern in lexicon.sentiment.items():
        traits[f"words of {name}"] = {
            row for row, example in enumerate(examples) if pattern.search(_text(example))
        }
    return traits


def _associate(
    group: str, rows: set[int], trait: str, with_trait: set[int], total: int
) -> Association:
    both = len(rows & with_trait)
    only_group, only_trait = len(rows) - both, len(with_trait) - both
    neither = total - both - only_group - only_trait
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
