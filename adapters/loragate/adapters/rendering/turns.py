"""Turns as a chat template can read them, where it has no place for what they are or hold."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

TemplateMessage = Mapping[str, object]  # role, content, tool_calls, …: what chat templates read

# Names that the rendering itself gives to templates, or takes as its arguments.
RESERVED_VARIABLES = frozenset(
    {
        *("messages", "tools", "add_generation_prompt", "conversation", "chat_template"),
        *("continue_final_message", "tokenize", "return_dict", "return_tensors", "padding"),
        *("truncation", "max_length", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)

_TOOL_PREAMBLE = """\
You may call one or more functions to help with the user's request.
The functions, as JSON, are inside <tools></tools>:
<tools>
{tools}
</tools>
To call a function, answer with its name and arguments as JSON inside <tool_call></tool_call>:
<tool_call>
{{"name": "<function name>", "arguments": {{<arguments>}}}}
</tool_call>"""

_RESPONSE = "<tool_response>\n{content}\n</tool_response>"

# How templates read a turn's reasoning where they do not call it reasoning_content.
_READS_THINKING = re.compile(r"""\.thinking\b|\[['"]thinking['"]\]|['"]thinking['"] in """)

_SHORT_ID = 9
_OTHER_NAME = "x7f3k9q2"
SYSTEM_ROLES = frozenset({"system", "developer"})


def template_turn(
    role: str,
    content: str,
    *,
    name: str | None = None,
    reasoning: str | None = None,
    tool_call_id: str | None = None,
    calls: Sequence[tuple[str, str, Mapping[str, object]]] = (),
) -> dict[str, object]:
    """One turn as chat templates read it; `calls` are ids, functions' names and arguments."""
    turn: dict[str, object] = {"role": role, "content": content}
    if name is not None:
        turn["name"] = name
    if reasoning is not None:  # templates look for the one name or the other
        turn |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if tool_call_id is not None:
        turn["tool_call_id"] = tool_call_id
    if calls:
        turn["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": function, "arguments": arguments},
            }
            for call_id, function, arguments in calls
        ]
    return turn


def with_known_roles(
    messages: Sequence[TemplateMessage], template: str
) -> Sequence[TemplateMessage]:
    """A developer is the system to a template that does not know the role; the two are one turn."""
    if "'developer'" in template or '"developer"' in template:
        return messages
    turns: list[TemplateMessage] = []
    for message in messages:
        if message["role"] != "developer":
            turns.append(message)
        elif turns and turns[-1]["role"] == "system":
            content = f"{turns[-1].get('content') or ''}\n\n{message.get('content') or ''}"
            turns[-1] = {**turns[-1], "content": content}
        else:
            turns.append({**message, "role": "system"})
    return turns


def with_known_names(
    messages: Sequence[TemplateMessage], template: str
) -> Sequence[TemplateMessage]:
    """Some templates call a turn's reasoning its thinking."""
    if not _READS_THINKING.search(template):
        return messages
    return [
        {**message, "thinking": message["reasoning_content"]}
        if message.get("reasoning_content")
        else message
        for message in messages
    ]


def begins_with_system(messages: Sequence[TemplateMessage]) -> bool:
    return bool(messages) and messages[0]["role"] == "system"


def shows_system(text: str, messages: Sequence[TemplateMessage]) -> bool:
    """Whether the text that a template made of the messages has anything of their system message,
    if they begin with one.
    """
    if not begins_with_system(messages):
        return True
    return is_shown(messages[0].get("content"), text)


def other_ways(messages: Sequence[TemplateMessage]) -> Iterator[Sequence[TemplateMessage]]:
    """The messages, and then the same conversation in other ways that templates may take: calls
    with short ids, without an empty content, with arguments as text; contents as lists of parts;
    and calls written out as text. Each of these with the system message in the first question too.
    """
    ways = [messages]
    if has_calls(messages):
        ways += [
            _each(messages, _with_short_ids),
            _each(messages, _without_empty_content),
            _each(messages, _with_arguments_as_text),
            _each(_each(messages, _without_empty_content), _with_arguments_as_text),
        ]
    ways.append(_each(messages, _in_parts))  # as templates of models that see pictures take it
    if has_calls(messages):
        ways.append(written_out(messages))
    for way in ways:
        yield way
        if begins_with_system(way):
            yield _system_in_question(way)


def names_elsewhere(
    messages: Sequence[TemplateMessage], tools: Sequence[Mapping[str, object]]
) -> bool:
    """Whether a function that was called is named by the tools, or by what was said, as well."""
    texts = [json.dumps(list(tools), default=str)]
    texts += [content for each in messages if isinstance(content := each.get("content"), str)]
    called = {str(each.get("name")) for message in messages for each in _functions(message)}
    return any(name in text for name in called for text in texts)


def with_other_names(messages: Sequence[TemplateMessage]) -> Sequence[TemplateMessage]:
    """The messages, with functions called by names that stand nowhere else."""

    def renamed(message: TemplateMessage) -> TemplateMessage:
        if not message.get("tool_calls"):
            return message
        calls = [
            {**call, "function": {**function, "name": f"{_OTHER_NAME}_{function.get('name')}"}}
            for call, function in zip(_calls(message), _functions(message), strict=True)
        ]
        return {**message, "tool_calls": calls}

    return _each(messages, renamed)


def shows_last(text: str, messages: Sequence[TemplateMessage]) -> bool:
    """Whether the text that a template made of the messages has anything of the last one's."""
    return is_shown(messages[-1].get("content"), text) if messages else True


def is_shown(content: object, text: str) -> bool:
    """Whether any line of a content is in the text, if it has one."""
    if isinstance(content, list):
        parts = cast(list[Mapping[str, object]], content)
        content = "\n".join(str(part.get("text")) for part in parts)
    lines = [line.strip() for line in str(content or "").splitlines()]
    said = [line for line in lines if line]
    return not said or any(line in text or _as_json(line) in text for line in said)


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_parts(message: TemplateMessage) -> TemplateMessage:
    content = message.get("content")
    if message["role"] == "tool" or not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _system_in_question(messages: Sequence[TemplateMessage]) -> Sequence[TemplateMessage]:
    system, *others = messages
    if isinstance(system.get("content"), list):
        return _each(_system_in_question(_each(messages, _in_text)), _in_parts)
    for number, message in enumerate(others):
        if message["role"] == "user":
            content = f"{system.get('content') or ''}\n\n{message.get('content') or ''}"
            return [*others[:number], {**message, "content": content}, *others[number + 1 :]]
    return [{**system, "role": "user"}, *others]


def _in_text(message: TemplateMessage) -> TemplateMessage:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = cast(list[Mapping[str, object]], content)
    return {**message, "content": "".join(str(part.get("text")) for part in parts)}


def _each(
    messages: Sequence[TemplateMessage], change: Callable[[TemplateMessage], TemplateMessage]
) -> Sequence[TemplateMessage]:
    return [change(message) for message in messages]


def _with_short_ids(message: TemplateMessage) -> TemplateMessage:
    """Some templates take ids of nine letters and digits alone."""
    changed = dict(message)
    if message.get("tool_call_id"):
        changed["tool_call_id"] = _short_id(message["tool_call_id"])
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "id": _short_id(call.get("id"))} for call in _calls(message)
        ]
    return changed


def _short_id(call_id: object) -> str:
    text = str(call_id)
    is_short = len(text) == _SHORT_ID and text.isascii() and text.isalnum()
    return text if is_short else hashlib.sha256(text.encode()).hexdigest()[:_SHORT_ID]


def _without_empty_content(message: TemplateMessage) -> TemplateMessage:
    if message.get("tool_calls") and not message.get("content"):
        return {**message, "content": None}
    return message


def _with_arguments_as_text(message: TemplateMessage) -> TemplateMessage:
    if not message.get("tool_calls"):
        return message
    calls: list[object] = []
    for call in _calls(message):
        function = call["function"]
        assert isinstance(function, Mapping)
        arguments = function.get("arguments")
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        calls.append({**call, "function": {**function, "arguments": text}})
    return {**message, "tool_calls": calls}


def describe_tools(
    messages: Sequence[TemplateMessage], tools: Sequence[Mapping[str, object]]
) -> Sequence[TemplateMessage]:
    """Puts the tools into the system message, for templates that have no place for them."""
    listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    preamble = _TOOL_PREAMBLE.format(tools=listing)
    if messages and messages[0]["role"] == "system":
        content = f"{messages[0].get('content') or ''}\n\n{preamble}"
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": "system", "content": preamble}, *messages]


def has_calls(messages: Sequence[TemplateMessage]) -> bool:
    """Whether tools were called in the conversation, or gave results."""
    return any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def shows_calls(text: str, messages: Sequence[TemplateMessage]) -> bool:
    """Whether the text that a template made of the messages names every function that was called,
    and has every result.
    """
    for message in messages:
        if not all(_is_named(str(each.get("name")), text) for each in _functions(message)):
            return False
        content = message.get("content")
        if message["role"] == "tool" and isinstance(content, str):
            result = content.strip()
            as_json = json.dumps(result, ensure_ascii=False)[1:-1]
            if not (result in text or as_json in text):
                return False
    return True


def _is_named(function: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(function)}(?!\w)", text) is not None


def written_out(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Calls and results as text, which every template writes."""
    turns: list[TemplateMessage] = []
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        turn = _written_out(message)
        if is_result and was_result:  # several results are one turn, since templates want turns
            content = f"{turns[-1]['content']}\n{turn['content']}"
            turns[-1] = {**turns[-1], "content": content}
        else:
            turns.append(turn)
        was_result = is_result
    return turns


def _written_out(message: TemplateMessage) -> TemplateMessage:
    content = message.get("content") or ""
    if calls := list(_functions(message)):
        written = "\n".join(
            f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls
        )
        others = {name: value for name, value in message.items() if name != "tool_calls"}
        return {**others, "content": f"{content}\n{written}".strip()}
    if message["role"] == "tool":
        return {"role": "user", "content": _RESPONSE.format(content=content)}
    return message


def _functions(message: TemplateMessage) -> Iterator[Mapping[str, object]]:
    for call in _calls(message):
        function = call["function"]
        assert isinstance(function, Mapping)
        yield function


def _calls(message: TemplateMessage) -> Sequence[Mapping[str, object]]:
    calls = message.get("tool_calls") or ()
    assert isinstance(calls, Sequence)
    return calls
