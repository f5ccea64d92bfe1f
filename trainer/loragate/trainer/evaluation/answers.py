"""What a model said to one row."""

from __future__ import annotations

import re
from dataclasses import dataclass

_EDGES = re.compile(r"^[\s\"'`*.:!]+|[\s\"'`*.:!]+$")


@dataclass(frozen=True, slots=True)
class Answer:
    """`is_ended`: by the model's own end of turn, not by the limit of tokens."""

    text: str
    is_ended: bool
    tokens: int


def plain(text: str) -> str:
    """Text to compare: without case, runs of space, and what people put around a word."""
    return _EDGES.sub("", " ".join(text.split()).casefold())


def label_in(answer: str, labels: tuple[str, ...]) -> str | None:
    """The label that the answer is; None for anything else, a label within a sentence too."""
    said = plain(answer)
    return next((label for label in labels if plain(label) == said), None)
