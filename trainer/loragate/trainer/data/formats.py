"""The four forms that training data come in, each turned into an `Example`.

A form is known by its fields. What a form cannot say here (a tool call, a picture, a turn that is
not to be learnt) is refused with a reason, never left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from loragate.trainer.data.example import ROLES, DataError, Example, Message, Role, check_order
from loragate.trainer.data.settings import FormatName, Reading

Fields = Mapping[str, object]

_SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_EMPTY: tuple[object, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Format:
    """`needs` are the fields that a row of it must have, `may` those it may have."""

    name: FormatName
    needs: tuple[str, ...]
    may: tuple[str, ...]
    convert: Callable[[Fields], tuple[Message, ...]]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset((*self.needs, *self.may))


def convert(row: Fields, reading: Reading) -> tuple[Example, frozenset[str]]:
    """Makes an example, and says which fields of the row were not used.

    Raises DataError with the reason, without a place.
    """
    form = _format_of(row, reading.format)
    if missing := [field for field in form.needs if field not in row]:
        raise DataError(f"the field {missing[0]!r} of the format {form.name!r} is missing")
    messages = form.convert(row)
    check_order(messages)
    taken = form.fields | {reading.label_field, reading.group_field, "id"}
    example = Example(
        messages,
        label=_short_text(row, reading.label_field),
        group=_short_text(row, reading.group_field),
        id=_short_text(row, "id"),
    )
    return example, frozenset(row) - taken


def _format_of(row: Fields, wanted: FormatName) -> Format:
    if wanted != "auto":
        return next(form for form in _FORMATS if form.name == wanted)
    for form in _FORMATS:
        if all(field in row for field in form.needs):
            return form
    known = "; ".join(" + ".join(form.needs) for form in _FORMATS)
    raise DataError(
        f"the fields {', '.join(sorted(row)) or '(none)'} make none of the known formats ({known})"
    )


def _from_messages(row: Fields) -> tuple[Message, ...]:
    if row.get("tools") not in _EMPTY or row.get("functions") not in _EMPTY:
        raise DataError("tools cannot be learnt from a row; leave the field 'tools' out")
    return _turns(row["messages"], "messages")


def _turns(turns: object, field: str) -> tuple[Message, ...]:
    if not isinstance(turns, list):
        raise DataError(f"the field {field!r} must be a list of turns")
    return tuple(_turn(turn) for turn in cast(list[object], turns))


def _turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError("a turn must be an object with 'role' and 'content'")
    turn = cast(dict[str, object], turn)
    role = turn.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise DataError(f"a turn's role must be one of {', '.join(ROLES)}")
    if turn.get("tool_calls") not in _EMPTY or turn.get("function_call") not in _EMPTY:
        raise DataError("a turn calls a tool, which cannot be learnt here yet")
    if turn.get("weight") not in (None, 1, 1.0):
        raise DataError("a turn has a weight other than 1; every answer of a row is learnt")
    return Message(cast(Role, role), _content(turn.get("content")))


def _content(content: object) -> str:
    """Text, or OpenAI's list of parts where all of them are text."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_part(part) for part in cast(list[object], content))
        case _:
            raise DataError("a turn's content is neither text nor a list of parts")


def _part(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise DataError("a turn has a part that is no text; only text can be learnt")


def _from_instruction(row: Fields) -> tuple[Message, ...]:
    if row.get("history") not in _EMPTY:
        raise DataError("the field 'history' is not read; give the row as 'messages'")
    question = "\n\n".join(
        part for field in ("instruction", "input") if (part := _text(row, field)).strip()
    )
    return _conversation(_text(row, "system"), question, _text(row, "output"))


def _from_prompt(row: Fields) -> tuple[Message, ...]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        before = _turns(prompt, "prompt") if isinstance(prompt, list) else ()
        after = _turns(completion, "completion") if isinstance(completion, list) else ()
        asked = before or (Message("user", _text(row, "prompt")),)
        return (*asked, *(after or (Message("assistant", _text(row, "completion")),)))
    return _conversation(_text(row, "system"), _text(row, "prompt"), _text(row, "completion"))


def _from_sharegpt(row: Fields) -> tuple[Message, ...]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise DataError("the field 'conversations' must be a list of turns")
    if row.get("tools") not in _EMPTY:
        raise DataError("tools cannot be learnt from a row; leave the field 'tools' out")
    said = tuple(_sharegpt_turn(turn) for turn in cast(list[object], turns))
    system = _text(row, "system")
    return (Message("system", system), *said) if system.strip() else said


def _sharegpt_turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError("a turn must be an object with 'from' and 'value'")
    turn = cast(dict[str, object], turn)
    role = _SHAREGPT_ROLES.get(str(turn.get("from")))
    if role is None:
        raise DataError(f"a turn's 'from' must be one of {', '.join(_SHAREGPT_ROLES)}")
    return Message(role, _text(turn, "value"))


def _conversation(system: str, question: str, answer: str) -> tuple[Message, ...]:
    turns = (Message("user", question), Message("assistant", answer))
    return (Message("system", system), *turns) if system.strip() else turns


def _text(row: Fields, field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"the field {field!r} must be text")
    return value


def _short_text(row: Fields, field: str) -> str | None:
    """A label, group or id: numbers are as good as text; an empty one is none."""
    value = row.get(field)
    if value is None or isinstance(value, (str, int)):
        return str(value).strip() or None if value is not None else None
    raise DataError(f"the field {field!r} must be text or a whole number")


_FORMATS = (
    Format("messages", ("messages",), ("tools", "functions"), _from_messages),
    Format("sharegpt", ("conversations",), ("system", "tools"), _from_sharegpt),
    Format("prompt", ("prompt", "completion"), ("system",), _from_prompt),
    Format("instruction", ("instruction", "output"), ("input", "system", "history"),
           _from_instruction),
)  # fmt: skip
