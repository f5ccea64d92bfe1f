"""How families of models write tool calls, and where in a text a call begins and ends.

vLLM's streaming parsers lose text, cut calls at tags within strings and take an argument called
"name" for the function's name; its whole parsers drop what follows a call. So a call is read here,
once it is complete, with the same result for any division of the text into pieces. What types the
arguments of XML have, and formats that are not known here, are left to vLLM's whole parsers.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call of an offered function: `arguments` is a JSON object. An id where the format
    has its own.
    """

    name: str
    arguments: str
    id: str | None = None


class Reading(NamedTuple):
    """What the first `length` characters are: calls and `content`, or without calls, text."""

    length: int
    calls: Sequence[Call] = ()
    content: str = ""


ReadWhole = Callable[[str], tuple[str, Sequence[Call]]]
"""vLLM's whole parser: a text's content and its calls."""


class CallFormat(ABC):
    """One family's. `filler` are characters that alone, beside a call, are no text."""

    filler = " \t\r\n"
    begins: tuple[str, ...] = ()
    only_at_start = False

    def find(self, text: str, *, is_last: bool) -> int:
        """Where a call may begin, or half of its beginning stands; the text's length where none."""
        found = [at for begin in self.begins if (at := text.find(begin)) >= 0]
        if not is_last:
            found += [len(text) - part for part in map(len, self._partial_begins(text))]
        return min(found, default=len(text))

    def read(self, text: str, *, is_last: bool) -> Reading | None:
        """Of a text that begins where `find` said; None where only more of it can tell. `is_last`
        says that there is no more.
        """
        if self.begins and not text.startswith(self.begins):  # no more than half of one
            return None
        return self._read(text, is_last=is_last)

    @abstractmethod
    def _read(self, text: str, *, is_last: bool) -> Reading | None: ...

    def _partial_begins(self, text: str) -> Sequence[str]:
        return [
            begin[:length]
            for begin in self.begins
            for length in range(1, len(begin))
            if text.endswith(begin[:length])
        ]


class TaggedJson(CallFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen."""

    begins = ("<tool_call>",)
    _END = "</tool_call>"

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        begin = len(self.begins[0])
        at = _skip_spaces(text, begin)
        if at == len(text):
            return Reading(len(text)) if is_last else None
        if text[at] != "{":
            return Reading(begin)
        if self._END not in text and not is_last:
            return None
        decoded = _decode(text, at)
        if decoded is None:  # also where the tag that has come is within a string
            return Reading(begin) if is_last else None
        value, end = decoded
        call = _call_of(value, self._names)
        after = _skip_spaces(text, end)
        rest = text[after:]
        if rest.startswith(self._END):
            length = after + len(self._END)
            return Reading(length, [call] if call else ())
        if not self._END.startswith(rest):
            return Reading(begin)
        if not is_last:
            return None
        return Reading(len(text), [call] if call else ())


class ListedJson(CallFormat):
    """`functools[{"name": …, "arguments": {…}}, …]`: Phi-4-mini."""

    begins = ("functools",)

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        begin = len(self.begins[0])
        return _read_list(text, begin, self._names, is_last=is_last)


class MistralCalls(CallFormat):
    """`[TOOL_CALLS][{…}, …]`, and of newer models `[TOOL_CALLS]name[ARGS]{…}`."""

    begins = ("[TOOL_CALLS]",)
    _NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
    # What may still become that.
    _BEGUN = re.compile(r"\s*(?:[\w.-]+[\[A-Z_\]]*\w*[\[A-Z\]]*\s*)?")

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        begin = len(self.begins[0])
        at = _skip_spaces(text, begin)
        if text[at : at + 1] == "[":
            return _read_list(text, begin, self._names, is_last=is_last)
        named = self._NAMED.match(text, begin)
        if named is None:
            may_come = self._BEGUN.fullmatch(text, begin) is not None
            return None if may_come and not is_last else Reading(begin)
        if named[1] not in self._names:
            return Reading(begin)
        decoded = _decode(text, named.end())
        if decoded is None:
            return Reading(begin) if is_last else None
        value, end = decoded
        return Reading(end, [Call(named[1], _json(value))])


class BareJson(CallFormat):
    """`{"name": …, "parameters": {…}}`, several divided by semicolons: Llama 3."""

    filler = " \t\r\n;"
    begins = ("<|python_tag|>", "{")

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        begin = len(self.begins[0]) if text.startswith(self.begins[0]) else 0
        at = _skip_spaces(text, begin)
        inner = _skip_spaces(text, at + 1)
        if inner >= len(text):
            return Reading(len(text)) if is_last else None
        if text[at] != "{" or text[inner] != '"':
            return Reading(max(begin, 1))
        if "}" not in text and not is_last:
            return None
        decoded = _decode(text, at)
        if decoded is None:
            return Reading(len(text)) if is_last else None
        value, end = decoded
        call = _call_of(value, self._names)
        return Reading(end, [call] if call else ())


class XmlCalls(CallFormat):
    """`<tool_call>NAME` with a tag for each argument: its types are by the function's schema, so
    vLLM reads a call once its borders are known. A tag's text within an argument is no border.
    """

    begins = ("<tool_call>",)
    _END = "</tool_call>"
    _HIDDEN = "\U000f2d5a\U000f91c3"  # stands for the `<` of such a text

    def __init__(self, names: Collection[str], read_whole: ReadWhole) -> None:
        self._names = names
        self._read_whole = read_whole

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        begin = len(self.begins[0])
        may_come = self._may_come(text[begin:].lstrip())
        if not may_come:
            return Reading(begin)
        end = text.find(self._END, begin)
        while end >= 0:
            length = end + len(self._END)
            if (hidden := self._hide(text[begin:end])) is not None:
                return Reading(length, self._calls(hidden))
            end = text.find(self._END, length)
        return Reading(begin) if is_last else None

    @abstractmethod
    def _may_come(self, inner: str) -> bool:
        """Whether what follows the first tag may become a call of an offered function."""

    @abstractmethod
    def _hide(self, inner: str) -> str | None:
        """What is between the tags, with tags in arguments hidden; None where it is no call."""

    def _calls(self, inner: str) -> Sequence[Call]:
        _, calls = self._read_whole(f"{self.begins[0]}{inner}{self._END}")
        shown = [checked(call.name, call.arguments, self._names) for call in calls]
        return [
            Call(call.name, call.arguments.replace(self._HIDDEN, "<")) for call in shown if call
        ]

    def _hidden(self, value: str) -> str:
        return value.replace("<", self._HIDDEN)


class QwenXml(XmlCalls):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`.

    At times models leave outer tags out, either or both.
    """

    begins = ("<tool_call>", "<function=")
    _END_OF_FUNCTION = "</function>"
    _NAME = re.compile(r"\s*<function=([^>\s]+)>")
    _BODY = re.compile(r"\s*<function=[^>\s]+>\s*(.*?)\s*</function>\s*", re.DOTALL)
    _BETWEEN = re.compile(r"</parameter>\s*(?=<parameter=)")
    _PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*)\Z", re.DOTALL)

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        if text.startswith(self.begins[1]):
            return self._read_bare(text, is_last=is_last)
        reading = super()._read(text, is_last=is_last)
        is_text = reading is not None and not reading.calls
        if is_last and is_text and (calls := self._unclosed(text)):
            return Reading(len(text), calls)
        return reading

    def _read_bare(self, text: str, *, is_last: bool) -> Reading | None:
        begin = len(self.begins[1])
        if not self._may_come(text):
            return Reading(begin)
        end = text.find(self._END_OF_FUNCTION)
        while end >= 0:
            length = end + len(self._END_OF_FUNCTION)
            if (hidden := self._hide(text[:length])) is not None:
                after = _skip_spaces(text, length)
                rest = text[after:]
                if rest.startswith(self._END):
                    length = after + len(self._END)
                elif self._END.startswith(rest):
                    if not is_last:
                        return None
                    length = len(text)
                return Reading(length, self._calls(hidden))
            end = text.find(self._END_OF_FUNCTION, length)
        return Reading(begin) if is_last else None

    def _unclosed(self, text: str) -> Sequence[Call]:
        """Of a text that is one call but for its last tag, or a part of that."""
        inner = text[len(self.begins[0]) :]
        last = inner.rfind("<")
        if last >= 0 and self._END.startswith(inner[last:]):
            inner = inner[:last]
        hidden = self._hide(inner)
        return self._calls(hidden) if hidden is not None else ()

    def _may_come(self, inner: str) -> bool:
        named = self._NAME.match(inner)
        if named is not None:
            return named[1] in self._names
        return any(f"<function={name}>".startswith(inner) for name in self._names)

    def _hide(self, inner: str) -> str | None:
        body = self._BODY.fullmatch(inner)
        if body is None:
            return None
        first, written = inner[: body.start(1)], body[1]
        if not written:
            return inner
        if not written.endswith("</parameter>"):
            return None
        parts = self._BETWEEN.split(written.removesuffix("</parameter>"))
        found = [self._PARAMETER.match(part) for part in parts]
        if not all(found):
            return None
        return "".join(
            [
                first,
                *(
                    f"<parameter={part[1]}>{self._hidden(part[2])}</parameter>\n"
                    for part in found
                    if part
                ),
                "</function>\n",
            ]
        )


class GlmXml(XmlCalls):
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>`."""

    _CALL = re.compile(r"\s*([^\s<]+)\s*(.*?)\s*", re.DOTALL)
    _BETWEEN = re.compile(r"</arg_value>\s*(?=<arg_key>)")
    _ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*)\Z", re.DOTALL)

    def _may_come(self, inner: str) -> bool:
        name = re.split(r"[\s<]", inner, maxsplit=1)[0]
        if name == inner:
            return any(each.startswith(name) for each in self._names)
        return name in self._names

    def _hide(self, inner: str) -> str | None:
        call = self._CALL.fullmatch(inner)
        if call is None:
            return None
        if not call[2]:
            return inner
        if not call[2].endswith("</arg_value>"):
            return None
        parts = self._BETWEEN.split(call[2].removesuffix("</arg_value>"))
        found = [self._ARGUMENT.match(part) for part in parts]
        if not all(found):
            return None
        written = (
            f"<arg_key>{part[1]}</arg_key>\n<arg_value>{self._hidden(part[2])}</arg_value>\n"
            for part in found
            if part
        )
        return f"{call[1]}\n{''.join(written)}"


class PythonCalls(CallFormat):
    """`[f(a=1), g()]` and nothing else: Llama's and others' Python."""

    begins = ("<|python_start|>", "[")
    only_at_start = True

    def __init__(self, names: Collection[str], read_whole: ReadWhole) -> None:
        self._names = names
        self._read_whole = read_whole

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        inner = text.removeprefix(self.begins[0]).lstrip()
        first = inner[1:].lstrip()
        may_come = not first or any(
            f"{name}(".startswith(first) or first.startswith(f"{name}(") for name in self._names
        )
        if (not inner.startswith("[") and inner) or not may_come:
            return Reading(len(text) - len(inner) + 1 if inner else len(text))
        return _whole_reading(text, self._read_whole, self._names) if is_last else None


class OtherCalls(CallFormat):
    """A format that vLLM alone knows: all from `begins` on is read at the answer's end."""

    def __init__(
        self, names: Collection[str], read_whole: ReadWhole, begins: Sequence[str]
    ) -> None:
        self._names = names
        self._read_whole = read_whole
        self.begins = tuple(begins)

    def find(self, text: str, *, is_last: bool) -> int:
        return super().find(text, is_last=is_last) if self.begins else 0

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        return _whole_reading(text, self._read_whole, self._names) if is_last else None


class NamedArguments(CallFormat):
    """The arguments alone, of the one function that has to be called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find(self, text: str, *, is_last: bool) -> int:
        return 0

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        if not is_last:
            return None
        decoded = _decode(text, _skip_spaces(text, 0))
        value = decoded[0] if decoded else {}
        return Reading(
            len(text), [Call(self._name, _json(value if isinstance(value, dict) else {}))]
        )


class RequiredCalls(CallFormat):
    """`[{"name": …, "parameters": {…}}, …]`, as a grammar has the model write it."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find(self, text: str, *, is_last: bool) -> int:
        return 0

    def _read(self, text: str, *, is_last: bool) -> Reading | None:
        if not is_last:
            return None
        calls: list[Call] = []
        at = _skip_spaces(text, 0)
        while at < len(text) and text[at] in "[,":
            decoded = _decode(text, _skip_spaces(text, at + 1))
            if decoded is None:
                break
            value, end = decoded
            if call := _call_of(value, self._names):
                calls.append(call)
            at = _skip_spaces(text, end)
        return Reading(len(text), calls)


def checked(name: object, arguments: object, names: Collection[str]) -> Call | None:
    """None where that is no call of an offered function. `arguments` as a value or as JSON text."""
    if not isinstance(name, str) or name not in names:
        return None
    if isinstance(arguments, str):
        text = arguments.strip()
        decoded = _decode(text, 0) if text else ({}, 0)
        if decoded is None or decoded[1] != len(text):
            return None
        arguments = decoded[0]
    if arguments is None:
        arguments = {}
    return Call(name, _json(arguments)) if isinstance(arguments, dict) else None


def _whole_reading(text: str, read_whole: ReadWhole, names: Collection[str]) -> Reading:
    """By vLLM: calls only where all of them are of offered functions, or what is none is lost."""
    content, calls = read_whole(text)
    found: list[Call] = []
    for call in calls:
        good = checked(call.name, call.arguments, names)
        if good is None:
            return Reading(len(text))
        found.append(replace(good, id=call.id))
    return Reading(len(text), found, content)


def _read_list(text: str, begin: int, names: Collection[str], *, is_last: bool) -> Reading | None:
    at = _skip_spaces(text, begin)
    first = _skip_spaces(text, at + 1)
    if first >= len(text):
        return None if text[at : at + 1] in ("", "[") and not is_last else Reading(begin)
    if text[at] != "[" or text[first] not in "{]":
        return Reading(begin)
    if "]" not in text[first:] and not is_last:
        return None
    decoded = _decode(text, at)
    if decoded is None:
        return Reading(begin) if is_last else None
    values, end = decoded
    calls = [_call_of(value, names) for value in values] if isinstance(values, list) else []
    return Reading(end, [call for call in calls if call] if all(calls) else ())


def _call_of(value: object, names: Collection[str]) -> Call | None:
    if not isinstance(value, dict):
        return None
    arguments = value.get("arguments")
    if arguments is None:
        arguments = value.get("parameters")
    return checked(value.get("name"), arguments, names)


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):  # too large, and could not be written as JSON again
        _refuse(number)
    return value


# Models write line breaks into strings as they are.
_decoder = json.JSONDecoder(strict=False, parse_constant=_refuse, parse_float=_finite)


def _decode(text: str, at: int) -> tuple[object, int] | None:
    """The value that begins there, and its end; None where it is none or not complete."""
    try:
        return _decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
        return json.dumps(value)
    return text
