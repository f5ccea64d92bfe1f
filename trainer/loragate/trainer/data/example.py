"""One conversation to learn from, and the file of them that all steps of the trainer read.

A file has one JSON object a line: `{"messages": [{"role", "content"}, …]}`, with an optional
`label` (the exact answer of a classification), `group` (rows that must stay in one split) and
`id`. `reading` converts other forms to this one.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, cast, get_args

from loragate.adapters.errors import LoragateError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


class DataError(LoragateError):
    """Training data that cannot be used; the message says which file and line, and what to do."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is never empty in an example that `read_examples` gave."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation, which ends with the answer to learn."""

    messages: tuple[Message, ...]
    label: str | None = None
    group: str | None = None
    id: str | None = None

    @property
    def prompt(self) -> str:
        """Every turn before the answer, as one text to compare conversations by."""
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].content

    def turns(self) -> list[dict[str, object]]:
        """The messages as chat templates read them (`Renderer.supervise`)."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def with_system_prompt(self, prompt: str) -> "Example":
        """With the prompt first, where there is one and the example has no system message yet."""
        if not prompt or self.messages[0].role == "system":
            return self
        return replace(self, messages=(Message("system", prompt), *self.messages))

    def to_json(self) -> dict[str, object]:
        optional = {"label": self.label, "group": self.group, "id": self.id}
        return {
            "messages": self.turns(),
            **{name: value for name, value in optional.items() if value is not None},
        }


def from_json(row: object) -> Example:
    """Makes an example of one parsed line. Raises DataError with the reason; the caller adds the
    line.
    """
    if not isinstance(row, dict):
        raise DataError("a row must be a JSON object")
    row = cast(dict[str, object], row)
    if unknown := sorted(row.keys() - {"messages", "label", "group", "id"}):
        raise DataError(f"the field {unknown[0]!r} is unknown; leave it out")
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise DataError("the field 'messages' is missing or no list")
    example = Example(
        tuple(_message(turn) for turn in cast(list[object], messages)),
        label=_optional_text(row, "label"),
        group=_optional_text(row, "group"),
        id=_optional_text(row, "id"),
    )
    check_turns(example.messages)
    return example


def check_turns(messages: tuple[Message, ...]) -> None:
    """Raises DataError unless questions and answers alternate, none empty, an answer last."""
    check_order(messages)
    if flaw := flaw_of(messages):
        raise DataError(flaw)


def check_order(messages: tuple[Message, ...]) -> None:
    """Raises DataError where the roles make no conversation; missing turns are for `flaw_of`."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise DataError("a system message can only come first")
    turns = [role for role in roles if role != "system"]
    if turns and turns[0] != "user" and "user" in turns:
        raise DataError(f"the conversation begins with the {turns[0]}")
    for number, (one, next_one) in enumerate(pairwise(roles), start=1):
        if one == next_one and one in ("user", "assistant"):
            raise DataError(f"turns {number} and {number + 1} are both of the {one}")


def flaw_of(messages: tuple[Message, ...]) -> str:
    """What is missing of a question and its answer, as a sentence; empty where nothing is."""
    said = [message for message in messages if message.content.strip()]
    roles = {message.role for message in said}
    if not said:
        return "the row is empty"
    if "assistant" not in roles:
        return "there is no answer"
    if "user" not in roles:
        return "there is no question"
    if messages[-1].role != "assistant":
        return f"the last turn is of the {messages[-1].role} and has no answer"
    if len(said) < len(messages):
        return "one of the turns is empty"
    return ""


def read_examples(path: Path) -> list[Example]:
    """Reads a file that `write_examples` wrote. Raises DataError with the line that is wrong."""
    examples: list[Example] = []
    for number, line in _lines(path):
        try:
            examples.append(from_json(json.loads(line)))
        except (DataError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: {error}; `loragate data clean` converts and cleans raw data"
            ) from error
    return examples


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Writes a file that is complete or absent. Raises DataError."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for example in examples:
                file.write(json.dumps(example.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def digest_of(examples: Iterable[Example]) -> str:
    """A SHA-256 in hex of the rows' content without ids, the same in any order of the rows."""
    return digest_of_texts(sorted(row_digest(example) for example in examples))


def digest_of_texts(texts: Iterable[str]) -> str:
    """A SHA-256 in hex of the texts in their order."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode())
    return total.hexdigest()


def row_digest(example: Example) -> str:
    """A SHA-256 in hex of one row without its id."""
    row = {name: value for name, value in example.to_json().items() if name != "id"}
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; `loragate data clean` can convert it") from error


def _message(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError("a turn must be an object with 'role' and 'content'")
    turn = cast(dict[str, object], turn)
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise DataError(f"the role {role!r} is unknown; use one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"the content of a turn of the {role} is no text")
    return Message(cast(Role, role), content)


def _optional_text(row: dict[str, object], field: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"the field {field!r} must be text")
    return value
