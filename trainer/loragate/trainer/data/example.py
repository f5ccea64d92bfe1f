"""One conversation to learn from, and the file of them that all steps of the trainer read.

A file has one JSON object a line: `{"messages": [{"role", "content"}, …]}`, with an optional
`tools` (that could be called), `label` (the exact answer of a classification), `group` (rows that
must stay in one split) and `id`. A turn may have `reasoning_content`, `tool_calls`, `tool_call_id`,
`name`, and a `weight` of 0 where it is not learnt. `formats` converts other forms to this one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, cast, get_args

from loragate.adapters.errors import LoragateError
from loragate.adapters.rendering.turns import SYSTEM_ROLES, template_turn

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
_TURN_FIELDS = frozenset(
    {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight"}
)


class DataError(LoragateError):
    """Training data that cannot be used; the message says which file and line, and what to do."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. `arguments` is a JSON object as text. An empty `id`: the row has none."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. An assistant's may have `reasoning`, which it thinks before `content`, and `calls`
    of tools; a tool's answers the call of `call_id`. What is not `is_learnt` is only read.

    Of `content`, `calls` and the result of a tool, one is never empty in an example that
    `read_examples` gave.
    """

    role: Role
    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    is_learnt: bool = True

    @property
    def text(self) -> str:
        """What the turn says: the content, and a line of JSON for each call."""
        return said(self.content, self.calls)

    @property
    def thinks(self) -> bool:
        """Whether it has reasoning, of its own or within its content."""
        return bool(self.reasoning) or (self.role == "assistant" and "</think>" in self.content)

    @property
    def is_empty(self) -> bool:
        return not self.content.strip() and not self.calls and self.role != "tool"

    def changed(self, change: Callable[[str], str]) -> "Message":
        """With every text changed, those within calls too."""
        calls = (
            replace(call, arguments=_dumps(_mapped(json.loads(call.arguments), change)))
            for call in self.calls
        )
        return replace(
            self,
            content=change(self.content),
            reasoning=change(self.reasoning),
            calls=tuple(calls),
        )

    def texts(self) -> Iterator[str]:
        """What `changed` changes."""
        found: list[str] = []

        def keep(text: str) -> str:
            found.append(text)
            return text

        self.changed(keep)
        return iter(found)

    def to_json(self) -> dict[str, object]:
        turn: dict[str, object] = {"role": self.role, "content": self.content}
        if self.reasoning:
            turn["reasoning_content"] = self.reasoning
        if self.calls:
            turn["tool_calls"] = [
                {
                    **({"id": call.id} if call.id else {}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        if self.call_id:
            turn["tool_call_id"] = self.call_id
        if self.name:
            turn["name"] = self.name
        if not self.is_learnt:
            turn["weight"] = 0
        return turn


def said(content: str, calls: Iterable[ToolCall]) -> str:
    """A turn as one text: its content, and a line of JSON for each call."""
    lines = (f'{{"name": {_dumps(call.name)}, "arguments": {call.arguments}}}' for call in calls)
    return "\n".join([*([content] if content else ()), *lines])


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation, which ends with the answer to learn. `tools` are those that could be called
    in it: a JSON list of OpenAI's tools as text, empty where there are none.
    """

    messages: tuple[Message, ...]
    label: str | None = None
    group: str | None = None
    id: str | None = None
    tools: str = ""

    @property
    def prompt(self) -> str:
        """Every turn before the answer, as one text to compare conversations by."""
        return "\n".join(message.text for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    @property
    def unlearnt(self) -> frozenset[int]:
        """Which messages of the assistant's are only read."""
        return frozenset(n for n, message in enumerate(self.messages) if not message.is_learnt)

    def turns(self) -> list[dict[str, object]]:
        """The messages as chat templates read them, as the server gives them a request's."""
        turns: list[dict[str, object]] = []
        asked: list[str] = []  # ids of calls whose results have not come yet
        for message in self.messages:
            calls = [
                (call.id or f"call{len(turns):03d}{n:02d}", call.name, json.loads(call.arguments))
                for n, call in enumerate(message.calls)
            ]
            asked = [call_id for call_id, _, _ in calls] or asked
            call_id = message.call_id or None
            if message.role == "tool" and asked:
                call_id = call_id or asked[0]
                asked = [each for each in asked if each != call_id]
            turns.append(
                template_turn(
                    message.role,
                    message.content,
                    name=message.name or None,
                    reasoning=message.reasoning or None,
                    tool_call_id=call_id,
                    calls=calls,
                )
            )
        return turns

    def tool_list(self) -> list[dict[str, object]]:
        """The tools as chat templates read them."""
        return cast(list[dict[str, object]], json.loads(self.tools)) if self.tools else []

    def with_system_prompt(self, prompt: str) -> "Example":
        """With the prompt first, where there is one and the example has no system message yet."""
        if not prompt or self.messages[0].role in SYSTEM_ROLES:
            return self
        return replace(self, messages=(Message("system", prompt), *self.messages))

    def to_json(self) -> dict[str, object]:
        optional = {"label": self.label, "group": self.group, "id": self.id}
        return {
            "messages": [message.to_json() for message in self.messages],
            **({"tools": self.tool_list()} if self.tools else {}),
            **{name: value for name, value in optional.items() if value is not None},
        }


def call_of(call: object) -> ToolCall:
    """A call as OpenAI writes it, or its function alone; arguments are an object, or its JSON.
    Raises DataError.
    """
    if not isinstance(call, dict):
        raise DataError("a call of a tool must be an object with 'name' and 'arguments'")
    call = cast(dict[str, object], call)
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise DataError("a call of a tool must have a 'function' with 'name' and 'arguments'")
    function = cast(dict[str, object], function)
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    if not isinstance(name, str) or not name:
        raise DataError("a call of a tool has no 'name'")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise DataError(f"the arguments of a call of {name!r} are no JSON") from None
    if not isinstance(arguments, dict | None):
        raise DataError(f"the arguments of a call of {name!r} are no JSON object")
    call_id = call.get("id")
    return ToolCall(name, _dumps(arguments or {}), call_id if isinstance(call_id, str) else "")


def tools_of(tools: object) -> str:
    """A row's tools: a list, or its JSON, of OpenAI's tools or of their functions alone. Raises
    DataError.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError):
            raise DataError("the field 'tools' is no JSON; give a list of tools") from None
    if tools is None or tools == []:
        return ""
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise DataError("the field 'tools' must be a list of tools")
    return _dumps([_tool(tool) for tool in cast(list[object], tools)])


def _tool(tool: object) -> dict[str, object]:
    """With the keys, and in the order, in which the server gives a request's to the template."""
    function = cast(dict[str, object], tool).get("function", tool) if isinstance(tool, dict) else {}
    function = cast(dict[str, object], function) if isinstance(function, dict) else {}
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise DataError("a tool has no 'name'; give {'name', 'description', 'parameters'}")
    if not isinstance(parameters, dict | None):
        raise DataError(f"the parameters of the tool {name!r} are no JSON schema")
    described = {
        "name": name,
        "description": str(function.get("description") or ""),
        "parameters": parameters or {},
    }
    return {"type": "function", "function": described}


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _mapped(value: object, change: Callable[[str], str]) -> object:
    """With the texts within changed; names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        inner = cast(Mapping[str, object], value)
        return {name: _mapped(each, change) for name, each in inner.items()}
    if isinstance(value, list):
        return [_mapped(each, change) for each in cast(list[object], value)]
    return value


def from_json(row: object) -> Example:
    """Makes an example of one parsed line. Raises DataError with the reason; the caller adds the
    line.
    """
    if not isinstance(row, dict):
        raise DataError("a row must be a JSON object")
    row = cast(dict[str, object], row)
    if unknown := sorted(row.keys() - {"messages", "tools", "label", "group", "id"}):
        raise DataError(f"the field {unknown[0]!r} is unknown; leave it out")
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise DataError("the field 'messages' is missing or no list")
    example = Example(
        tuple(_message(turn) for turn in cast(list[object], messages)),
        label=_optional_text(row, "label"),
        group=_optional_text(row, "group"),
        id=_optional_text(row, "id"),
        tools=tools_of(row.get("tools")),
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
    start = 2 if roles[:2] == ["system", "developer"] else 1
    if late := SYSTEM_ROLES.intersection(roles[start:]):
        raise DataError(f"a {min(late)} message can only come first")
    turns = [role for role in roles if role not in SYSTEM_ROLES]
    if turns and turns[0] != "user" and "user" in turns:
        raise DataError(f"the conversation begins with the {turns[0]}")
    for number, (one, next_one) in enumerate(pairwise(roles), start=1):
        if one == next_one and one in ("user", "assistant"):
            raise DataError(f"turns {number} and {number + 1} are both of the {one}")


def flaw_of(messages: tuple[Message, ...]) -> str:
    """What is missing of a question and its answer, as a sentence; empty where nothing is."""
    present = [message for message in messages if not message.is_empty]
    roles = {message.role for message in present}
    if not roles - {"tool"}:
        return "the row is empty"
    if "assistant" not in roles:
        return "there is no answer"
    if "user" not in roles:
        return "there is no question"
    if messages[-1].role != "assistant":
        return f"the last turn is of the {messages[-1].role} and has no answer"
    if len(present) < len(messages):
        return "one of the turns is empty"
    if not any(message.is_learnt for message in messages if message.role == "assistant"):
        return "no answer is to be learnt"
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
    if unknown := sorted(turn.keys() - _TURN_FIELDS):
        raise DataError(f"the field {unknown[0]!r} of a turn is unknown; leave it out")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise DataError(f"the role {role!r} is unknown; use one of {', '.join(ROLES)}")
    calls = turn.get("tool_calls") or []
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"the content of a turn of the {role} is no text")
    if not isinstance(calls, list):
        raise DataError("the calls of a turn must be a list")
    return Message(
        cast(Role, role),
        content,
        reasoning=_optional_text(turn, "reasoning_content") or "",
        calls=tuple(map(call_of, cast(list[object], calls))),
        call_id=_optional_text(turn, "tool_call_id") or "",
        name=_optional_text(turn, "name") or "",
        is_learnt=turn.get("weight") != 0,
    )


def _optional_text(row: dict[str, object], field: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"the field {field!r} must be text")
    return value
