"""Turns as a chat template can read them, where it has no place for what they are or hold."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

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


def with_known_roles(
    messages: Sequence[TemplateMessage], template: str
) -> Sequence[TemplateMessage]:
    """A developer is the system to a template that does not know the role."""
    if "'developer'" in template or '"developer"' in template:
        return messages
    return [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]


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
    calls = message.get("tool_calls") or ()
    assert isinstance(calls, Sequence)
    for call in calls:
        yield call["function"]
