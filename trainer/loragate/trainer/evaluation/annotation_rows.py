"""Rows that people are to label or to answer, in any form that training data have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loragate.trainer.data.example import DataError, Message
from loragate.trainer.data.files import Place, files_of, rows_of
from loragate.trainer.data.formats import convert
from loragate.trainer.data.relevance import question_of
from loragate.trainer.data.settings import Reading


class Item(msgspec.Struct, frozen=True):
    """One row: where it was read, its turns before the answer, and what its file has of it."""

    place: str
    messages: list[dict[str, object]]
    answer: str = ""
    label: str | None = None
    group: str | None = None
    id: str | None = None
    tools: list[dict[str, object]] = []

    @property
    def prompt(self) -> str:
        if len(self.messages) == 1:
            return str(self.messages[0]["content"])
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


def read_items(paths: Sequence[Path], reading: Reading) -> list[Item]:
    """Rows to label: with answers and labels or without, or questions in lines of a .txt file.
    Raises DataError.
    """
    found: list[Item] = []
    for path in paths:
        if path.suffix.lower() == ".txt":
            found += _lines(path)
        else:
            for file in files_of([path]):
                found += [_item(place, fields, reading) for place, fields in rows_of(file, reading)]
    if not found:
        raise DataError(f"there is no row in {', '.join(map(str, paths))}")
    return found


def _lines(path: Path) -> list[Item]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a text file in UTF-8") from error
    return [
        Item(f"{path}:{number}", [Message("user", line.strip()).to_json()])
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _item(place: Place, fields: Mapping[str, object] | str, reading: Reading) -> Item:
    if isinstance(fields, str):
        raise DataError(f"{place}: {fields}")
    try:
        row, _ = convert(fields, reading)
    except DataError as error:
        question = question_of(fields)
        if not question or _has_answer(fields):
            raise DataError(f"{place}: {error}") from error
        label = fields.get(reading.label_field)
        messages = [Message("user", question).to_json()]
        return Item(str(place), messages, label=str(label) if label else None)
    is_answered = row.messages[-1].role == "assistant"
    turns = row.messages[:-1] if is_answered else row.messages
    if not any(turn.role == "user" and turn.content.strip() for turn in turns):
        raise DataError(f"{place}: there is no question")
    return Item(
        str(place),
        [turn.to_json() for turn in turns],
        row.answer if is_answered else "",
        row.label or None,
        row.group,
        row.id,
        row.tool_list(),
    )


def _has_answer(fields: Mapping[str, object]) -> bool:
    return any(fields.get(name) for name in ("completion", "output", "answer", "response"))
