"""Small rows, as the tests of data make them."""

import json
from collections.abc import Iterable
from pathlib import Path

from loragate.trainer.data.example import Example, Message
from loragate.trainer.data.reading import Place, Read, Row


def example(
    question: str, answer: str = "Yes.", *, label: str | None = None, group: str | None = None
) -> Example:
    messages = (Message("user", question), Message("assistant", answer))
    return Example(messages, label=label, group=group)


def read(*examples: Example) -> Read:
    """As if the examples were the lines of one file."""
    return Read([Row(Place("raw.jsonl", line), e) for line, e in enumerate(examples, start=1)])


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def distinct(count: int) -> list[Example]:
    """Questions that share no words, so that nothing joins them."""
    return [
        example(" ".join(f"w{number}x{word}" for word in range(6)), f"a{number}")
        for number in range(count)
    ]
