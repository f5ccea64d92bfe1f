"""One row, in any of the formats of training data, to an example.

A format is known by its fields; a field that is null is absent. What cannot be learnt (a picture, a
turn with half a weight) is refused with a reason, and fields that are not read are named, those of
turns too: nothing is left out silently.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from loragate.adapters.rendering.turns import SYSTEM_ROLES
from loragate.trainer.data.example import (
    ROLES,
    DataError,
    Example,
    Message,
    Role,
    ToolCall,
    call_of,
    check_order,
    tools_of,
)
from loragate.trainer.data.settings import FormatName, Reading

Fields = Mapping[str, object]
_SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
    "tool": "tool",
}
_CALLS = frozenset({"function_call", "tool_call"})  # of these roles
_EMPTY: tuple[object, ...] = (None, "", [], {})
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "train", "training", "trainable", "loss")
_TURN_FIELDS = frozenset(
    {"role", "from", "content", "value", "name", "tool_calls", "function_call", "tool_call_id"}
    | {*_REASONING, *_WEIGHTS}
)
# The question, what belongs to it, the answer, and whether that is a class, by usual names.
_USUAL_NAMES: tuple[tuple[str, str, str, bool], ...] = (
    ("instruction", "context", "response", False),
    ("instruction", "input", "response", False),
    ("question", "context", "answer", False),
    ("question", "context", "response", False),
    ("query", "context", "answer", False),
    ("query", "context", "response", False),
    ("prompt", "", "response", False),
    ("prompt", "", "answer", False),
    ("prompt", "", "output", False),
    ("problem", "", "solution", False),
    ("input", "", "output", False),
    ("input", "", "target", False),
    ("inputs", "", "targets", False),
    ("context", "", "response", False),
    ("text", "", "category", True),
    ("text", "", "intent", True),
    ("text", "", "class", True),
    ("text", "", "label_text", True),
    ("text", "", "label", True),
    ("sentence", "", "label", True),
    ("utterance", "", "intent", True),
)
_PREFERENCE_FIELDS = frozenset(
    {"chosen", "rejected", "prompt", "question", "messages", "score_chosen", "score_rejected"}
    | {"margin"}
)
_VERDICTS = {"true": True, "false": False}
_NO_PREFERENCES = (
    "preference data, of which the bad answers must not be learnt as good ones; learn the good "
    "ones alone with --preferences chosen ([data] preferences), or leave such rows out"
)
_TURN_MARKS = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
# Of a turn's other fields, those that could say that it is not to be learnt.
_LIKE_WEIGHTS = re.compile("mask|loss|train|weight|supervis|learn", re.IGNORECASE)
_MEDIA = re.compile(r"(image|picture|video|audio)s?(_paths?|_urls?|_files?)?", re.IGNORECASE)
_MEDIA_IN_TEXT = re.compile(r"^\s*<(image|video|audio)>\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of rows: the fields that a row must have, and those that it may have."""

    name: FormatName
    needs: tuple[str, ...]
    may: tuple[str, ...]
    convert: Callable[[Fields], tuple[Message, ...]]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset((*self.needs, *self.may, "tools", "functions"))


def convert(row: Fields, reading: Reading) -> tuple[Example, frozenset[str]]:
    """Returns the example, and the names of fields that were not used.

    Raises DataError with the reason; the caller adds file and line.
    """
    row = {name: value for name, value in row.items() if value is not None}
    row = _with_own_names(row, reading)
    row = _preference(row, reading)
    row = _with_known_names(row, reading)
    form = _format_of(row, reading.format)
    if missing := [field for field in form.needs if field not in row]:
        raise DataError(f"the field {missing[0]!r} of the format {form.name!r} is missing")
    _refuse_media(row)
    messages = _learnable(form.convert(row))
    check_order(messages)
    example = Example(
        messages,
        label=_short_text(row, reading.label_field),
        group=_short_text(row, reading.group_field),
        id=_short_text(row, "id"),
        tools=tools_of(row.get("tools")) or tools_of(row.get("functions")),
    )
    taken = form.fields | {reading.label_field, reading.group_field, "id", "origin"}
    return example, frozenset((*(row.keys() - taken), *_unread_of_turns(row, form)))


class RejectedAnswer(DataError):
    """A row whose answer people found bad, where only good ones are to be learnt."""


def _with_own_names(row: dict[str, object], reading: Reading) -> dict[str, object]:
    """With the fields that `reading.fields` names under the format's names."""
    renamed = dict(row)
    for name, own in reading.fields:
        if own not in row:
            raise DataError(
                f"the field {own!r}, which is to be read as {name!r}, is missing; the row has "
                f"{', '.join(sorted(row)) or 'none'}"
            )
        renamed[name] = row[own]
    kept = {name for name, _ in reading.fields}
    for own in {own for _, own in reading.fields} - kept:
        renamed.pop(own, None)
    return renamed


def _with_known_names(row: dict[str, object], reading: Reading) -> dict[str, object]:
    """With a question and an answer of other usual names as those of the format `prompt`; a class
    is the label too.
    """
    if reading.format != "auto" or any(all(n in row for n in form.needs) for form in _FORMATS):
        return row
    for question, context, answer, is_class in _USUAL_NAMES:
        if question not in row or answer not in row:
            continue
        said = _scalar(row, answer) if is_class else row[answer]
        asked = row[question]
        if context and isinstance(more := row.get(context), str) and more.strip():
            asked = f"{asked}\n\n{more}"
        renamed = {n: v for n, v in row.items() if n not in (question, context, answer)}
        renamed |= {"prompt": asked, "completion": said}
        if is_class:
            renamed.setdefault(reading.label_field, said)
        return renamed
    return row


def _scalar(row: Fields, field: str) -> object:
    value = row[field]
    return str(value) if isinstance(value, int | float) else value


def _preference(row: dict[str, object], reading: Reading) -> dict[str, object]:
    """A row with a good and a bad answer, or with one that is called good or bad, as one with the
    good answer. Raises RejectedAnswer, and DataError where such rows are to be refused.
    """
    if "chosen" in row and "rejected" in row:
        if reading.preferences == "refuse":
            raise DataError(f"the row has a chosen and a rejected answer: {_NO_PREFERENCES}")
        rest = {n: v for n, v in row.items() if n not in _PREFERENCE_FIELDS}
        return {**rest, **_chosen(row)}
    verdict = _verdict(row, reading)
    if verdict is None:
        return row
    if reading.preferences == "refuse":
        raise DataError(
            f"the field {reading.label_field!r} says whether the answer is good: {_NO_PREFERENCES}"
        )
    if not verdict:
        raise RejectedAnswer("the answer was found bad")
    return {name: value for name, value in row.items() if name != reading.label_field}


def _verdict(row: Fields, reading: Reading) -> bool | None:
    """True or false where the label says that of a whole answer; None where it is a class."""
    label = row.get(reading.label_field)
    if isinstance(label, bool):
        return label
    if not isinstance(label, str) or label.strip().casefold() not in _VERDICTS:
        return None
    answer = row.get("completion", row.get("output"))
    if answer is None and isinstance(turns := row.get("messages"), list) and turns:
        answer = cast(dict[str, object], turns[-1]).get("content")
    is_class = isinstance(answer, str) and answer.strip().casefold() in _VERDICTS
    return None if is_class or answer is None else _VERDICTS[label.strip().casefold()]


def _chosen(row: Fields) -> dict[str, object]:
    """The conversation with the chosen answer."""
    chosen, prompt = row["chosen"], row.get("prompt")
    if isinstance(chosen, list):
        turns = cast(list[object], chosen)
        first = cast(dict[str, object], turns[0]) if turns and isinstance(turns[0], dict) else {}
        is_answer = first.get("role", first.get("from")) in ("assistant", "gpt")
        if is_answer and isinstance(prompt, list):
            return {"messages": [*cast(list[object], prompt), *turns]}
        if is_answer:
            return {"messages": [{"role": "user", "content": prompt}, *turns]}
        return {"messages": turns}
    if isinstance(chosen, dict):
        return {"messages": [{"role": "user", "content": prompt}, chosen]}
    if isinstance(chosen, str) and _TURN_MARKS.match(chosen):
        return {"messages": _marked_turns(chosen)}
    asked = prompt if prompt is not None else row.get("question", row.get("instruction"))
    if asked is None:
        raise DataError("the row has a chosen answer and no prompt; name it with fields")
    return {"prompt": asked, "completion": chosen}


def _marked_turns(text: str) -> list[dict[str, object]]:
    """The turns of a text in which each begins with `Human:` or `Assistant:`."""
    marks = [*_TURN_MARKS.finditer(text)]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {
            "role": "user" if mark[1] == "Human" else "assistant",
            "content": text[mark.end() : end].strip(),
        }
        for mark, end in zip(marks, ends, strict=True)
    ]


def _format_of(row: Fields, wanted: FormatName) -> Format:
    if wanted != "auto":
        return next(form for form in _FORMATS if form.name == wanted)
    present = [form for form in _FORMATS if all(field in row for field in form.needs)]
    # A table of several formats has empty cells in the columns of the others.
    filled = [form for form in present if all(row[field] not in _EMPTY for field in form.needs)]
    if found := filled or present:
        return found[0]
    known = "; ".join(" + ".join(form.needs) for form in _FORMATS)
    raise DataError(
        f"the fields {', '.join(sorted(row)) or '(none)'} make none of the known formats ({known})"
        "; say which is which, as with --field prompt=QUESTION --field completion=ANSWER"
    )


def _refuse_media(row: Fields) -> None:
    for name, value in row.items():
        if _MEDIA.fullmatch(name) and value not in _EMPTY:
            raise DataError(
                f"the row has a picture, film or sound in the field {name!r}, and only text can be "
                "learnt; leave such rows out"
            )


def _learnable(turns: Iterable[Message]) -> tuple[Message, ...]:
    """Without empty system messages, and without what stands behind the last answer to learn."""
    messages = [turn for turn in turns if turn.role not in SYSTEM_ROLES or turn.content.strip()]
    for message in messages:
        if found := _MEDIA_IN_TEXT.search(message.content):
            raise DataError(
                f"a turn has the placeholder <{found[1]}>, and only text can be learnt; leave such "
                "rows out"
            )
    learnt = [n for n, turn in enumerate(messages) if turn.role == "assistant" and turn.is_learnt]
    if learnt and messages[-1].role == "assistant":
        del messages[learnt[-1] + 1 :]
    return tuple(messages)


def _unread_of_turns(row: Fields, form: Format) -> Iterator[str]:
    for field in form.needs:
        turns = row[field]
        for turn in cast(list[object], turns) if isinstance(turns, list) else ():
            if isinstance(turn, dict):
                for name, value in cast(dict[str, object], turn).items():
                    if name not in _TURN_FIELDS and value not in _EMPTY:
                        yield f"{field}[].{name}"


def _from_messages(row: Fields) -> tuple[Message, ...]:
    turns = _turns(row["messages"], "messages")
    return _with_system(_text(row, "system"), turns)


def _turns(turns: object, field: str) -> tuple[Message, ...]:
    if not isinstance(turns, list):
        raise DataError(f"the field {field!r} must be a list of turns")
    messages: list[Message] = []
    for turn in cast(list[object], turns):
        message = _turn(turn)
        before = messages[-1] if messages else None
        # ShareGPT has what is said, and each call, in turns of their own.
        is_call = bool(message.calls) and not message.content
        if before and before.role == "assistant" and is_call and _from(turn) in _CALLS:
            messages[-1] = replace(
                before,
                calls=before.calls + message.calls,
                is_learnt=before.is_learnt and message.is_learnt,
            )
        else:
            messages.append(message)
    return tuple(messages)


def _from(turn: object) -> object:
    return cast(dict[str, object], turn).get("from") if isinstance(turn, dict) else None


def _turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError("a turn must be an object with 'role' and 'content'")
    turn = cast(dict[str, object], turn)
    role = _role(turn)
    said = turn.get("content", turn.get("value"))
    calls: tuple[ToolCall, ...] = ()
    content, thought = "", ""
    if turn.get("from") in _CALLS and not turn.get("tool_calls"):
        calls = _calls_in_text(said)
    else:
        content, thought = _content(said, is_result=role == "tool")
        calls = _calls(turn)
    if calls and role != "assistant":
        raise DataError(f"a turn of the {role} calls a tool; only the assistant can")
    return Message(
        role,
        content,
        reasoning=_reasoning(turn) or thought,
        calls=calls,
        call_id=_text(turn, "tool_call_id"),
        name=_text(turn, "name") if role == "tool" else "",
        is_learnt=role != "assistant" or _is_learnt(turn),
    )


def _role(turn: Mapping[str, object]) -> Role:
    if "from" in turn:
        role = _SHAREGPT_ROLES.get(str(turn["from"]))
        if role is None:
            raise DataError(f"a turn's 'from' must be one of {', '.join(_SHAREGPT_ROLES)}")
        return role
    role = "tool" if turn.get("role") == "function" else turn.get("role")
    if role not in ROLES:
        raise DataError(f"a turn's role must be one of {', '.join(ROLES)}")
    return cast(Role, role)


def _calls(turn: Mapping[str, object]) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if calls in _EMPTY:
        old = turn.get("function_call")
        return () if old in _EMPTY else (call_of(old),)
    if isinstance(calls, str):
        return _calls_in_text(calls)
    if not isinstance(calls, list):
        raise DataError("a turn's 'tool_calls' must be a list")
    return tuple(map(call_of, cast(list[object], calls)))


def _calls_in_text(said: object) -> tuple[ToolCall, ...]:
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except (ValueError, RecursionError):
            raise DataError(
                "a turn that calls a tool must be JSON with 'name' and 'arguments'"
            ) from None
    calls = cast(list[object], said) if isinstance(said, list) else [said]
    return tuple(map(call_of, calls))


def _is_learnt(turn: Mapping[str, object]) -> bool:
    is_learnt = True
    for name, value in turn.items():
        if name in _WEIGHTS:
            if value is None:
                continue
            if value not in (0, 1):
                raise DataError(
                    f"a turn has {name!r} of {value!r}; a turn is learnt (1) or not (0)"
                )
            is_learnt = is_learnt and bool(value)
        elif name not in _TURN_FIELDS and _LIKE_WEIGHTS.search(name) and value is not None:
            raise DataError(
                f"a turn has the field {name!r}, which may say that it is not to be learnt; say it "
                "with 'weight' (0 or 1), or leave the field out"
            )
    return is_learnt


def _reasoning(fields: Fields) -> str:
    for name in _REASONING:
        if isinstance(text := fields.get(name), str) and text.strip():
            return text
    return ""


def _content(content: object, *, is_result: bool) -> tuple[str, str]:
    """What is said, and thought: of text, or of OpenAI's list of parts where all are text. The
    result of a tool may be anything, which is JSON then.
    """
    match content:
        case None:
            return "", ""
        case str():
            return content, ""
        case list() if not is_result or all(map(_is_part, cast(list[object], content))):
            parts = [_part(part) for part in cast(list[object], content)]
            return "".join(said for said, _ in parts), "\n".join(each for _, each in parts if each)
        case _ if is_result:
            return json.dumps(content, ensure_ascii=False), ""
        case _:
            raise DataError("a turn's content is neither text nor a list of parts")


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and "type" in part


def _part(part: object) -> tuple[str, str]:
    match part:
        case str():
            return part, ""
        case {"type": "text", "text": str(text)}:
            return text, ""
        case {"type": "text", "value": str(text)} | {"type": "text", "content": str(text)}:
            return text, ""
        case {"type": "thinking", "thinking": str(text)} | {"type": "reasoning", "text": str(text)}:
            return "", text
        case _:
            raise DataError("a turn has a part that is no text; only text can be learnt")


def _from_instruction(row: Fields) -> tuple[Message, ...]:
    if row.get("history") not in _EMPTY:
        raise DataError("the field 'history' is not read; give the row as 'messages'")
    question = "\n\n".join(
        part for field in ("instruction", "input") if (part := _text(row, field)).strip()
    )
    return _conversation(row, question, _text(row, "output"))


def _from_prompt(row: Fields) -> tuple[Message, ...]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        before = _turns(prompt, "prompt") if isinstance(prompt, list) else ()
        after = _turns(completion, "completion") if isinstance(completion, list) else ()
        asked = before or (Message("user", _text(row, "prompt")),)
        answered = after or (Message("assistant", _text(row, "completion")),)
        # What the prompt has of the assistant's was said before, and is not to be learnt.
        return _with_system(_text(row, "system"), (*_only_read(asked), *answered))
    return _conversation(row, _text(row, "prompt"), _text(row, "completion"))


def _only_read(turns: Sequence[Message]) -> Iterator[Message]:
    for turn in turns:
        yield replace(turn, is_learnt=False) if turn.role == "assistant" else turn


def _from_sharegpt(row: Fields) -> tuple[Message, ...]:
    return _with_system(_text(row, "system"), _turns(row["conversations"], "conversations"))


def _conversation(row: Fields, question: str, answer: str) -> tuple[Message, ...]:
    answered = Message("assistant", answer, reasoning=_reasoning(row))
    return _with_system(_text(row, "system"), (Message("user", question), answered))


def _with_system(system: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if not system.strip():
        return turns
    if turns and turns[0].role in SYSTEM_ROLES and turns[0].content.strip():
        if turns[0].content.strip() == system.strip():
            return turns
        raise DataError("the row has a 'system' field and a system turn; leave one of them out")
    return (Message("system", system), *turns)


def _text(row: Fields, field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"the field {field!r} must be text")
    return value


def _short_text(row: Fields, field: str) -> str | None:
    """A label, group or id, which may be text or a whole number; None where it is empty."""
    value = row.get(field)
    if value is None or isinstance(value, (str, int)):
        return str(value).strip() or None if value is not None else None
    raise DataError(f"the field {field!r} must be text or a whole number")


_FORMATS = (
    Format("messages", ("messages",), ("system",), _from_messages),
    Format("sharegpt", ("conversations",), ("system",), _from_sharegpt),
    Format("prompt", ("prompt", "completion"), ("system", *_REASONING), _from_prompt),
    Format("instruction", ("instruction", "output"), ("input", "system", "history", *_REASONING),
           _from_instruction),
)  # fmt: skip
