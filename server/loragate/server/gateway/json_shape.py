"""How large a JSON text is in things rather than bytes, counted before it is decoded.

Two bytes of JSON can become a hundred of memory, and a decoder holds the interpreter's lock until
it is through: `[[],[],…` of four megabytes stops every other thread for a quarter of a second.
Counting the brackets and quotes of as many bytes takes milliseconds.
"""

from dataclasses import dataclass

from loragate.server.errors import InvalidRequest
from loragate.server.gateway import bounds

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = b"[{"


@dataclass(frozen=True, slots=True)
class JsonShape:
    """Counts of one text. Of one that is no JSON, they hold up to where a decoder would stop."""

    containers: int
    strings: int
    values: int
    depth: int


def json_shape(text: bytes, most_strings: int = bounds.MOST_JSON_STRINGS) -> JsonShape:
    """Counts what is in `text`; where there are more than `most_strings`, those alone."""
    if b"\\" in text:
        # Backslashes stand in strings only, so what they escape may go: pairs first, from the left.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = text.count(b'"') // 2
    if strings > most_strings:
        return JsonShape(0, strings, 0, 0)
    outside = b"".join(text.split(b'"')[::2])
    containers = outside.count(b"[") + outside.count(b"{")
    values = containers + outside.count(b",") + 1
    depth = _depth(outside) if containers > bounds.MOST_JSON_DEPTH else containers
    return JsonShape(containers, strings, values, depth)


def check_json(
    text: bytes, what: str, param: str | None = None, most_values: int = bounds.MOST_JSON_VALUES
) -> None:
    """Raises InvalidRequest where `text` would become more than a request may hold. It need not be
    JSON; whether it is shows when it is decoded.
    """
    if len(text) <= bounds.MOST_JSON_DEPTH:
        return
    shape = json_shape(text)
    for count, most, things in (
        (shape.strings, bounds.MOST_JSON_STRINGS, "strings"),
        (shape.containers, bounds.MOST_JSON_CONTAINERS, "lists and objects"),
        (shape.values, most_values, "values"),
        (shape.depth, bounds.MOST_JSON_DEPTH, "levels of lists and objects"),
    ):
        if count > most:
            raise InvalidRequest(
                f"{what} has {count} {things}, and may have {most}; send less of it.",
                param=param,
                code="request_too_complex",
            )


def is_too_deep(text: bytes) -> bool:
    """Whether its brackets go deeper than those of any JSON that a request may have."""
    is_short = len(text) <= bounds.MOST_JSON_DEPTH
    return not is_short and json_shape(text).depth > bounds.MOST_JSON_DEPTH


def _depth(outside: bytes) -> int:
    """How deep the brackets go. At most as many are looked at as may be in a text."""
    brackets = outside.translate(None, delete=_NO_BRACKETS)[: 2 * bounds.MOST_JSON_CONTAINERS]
    depth = deepest = 0
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        deepest = max(deepest, depth)
    return deepest
