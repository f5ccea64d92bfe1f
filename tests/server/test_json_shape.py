"""Counts of a JSON text without decoding it: never fewer than decoding finds."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.server.errors import InvalidRequest
from loragate.server.gateway import bounds
from loragate.server.gateway.json_shape import JsonShape, check_json, json_shape

TEXTS = st.text(alphabet='ab"\\[]{},:\n\x01é\U0001f600', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=30,
)


def counted(value: object) -> JsonShape:
    """By walking through what it became."""
    inner: list[object] = []
    strings = int(isinstance(value, str))
    if isinstance(value, list):
        inner = value
    if isinstance(value, dict):
        inner, strings = list(value.values()), len(value)
    shapes = [counted(each) for each in inner]
    is_container = int(isinstance(value, list | dict))
    return JsonShape(
        is_container + sum(shape.containers for shape in shapes),
        strings + sum(shape.strings for shape in shapes),
        1 + sum(shape.values for shape in shapes),
        is_container + max((shape.depth for shape in shapes), default=0),
    )


@settings(deadline=None)
@given(value=VALUES, is_ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_a_shape_is_that_of_what_the_text_becomes(
    value: object, is_ascii: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    shape, true = json_shape(text.encode()), counted(value)
    assert (shape.containers, shape.strings) == (true.containers, true.strings)
    # An empty list has no value in it, yet looks as if it had one beside its brackets.
    assert true.values <= shape.values <= true.values + true.containers + 1
    assert shape.depth == true.depth or shape.containers <= bounds.MOST_JSON_DEPTH


@pytest.mark.parametrize(
    ("text", "things"),
    [
        pytest.param(b"[" * 200_000, "lists and objects", id="brackets-without-end"),
        pytest.param(b"[" + b"[]," * 200_000 + b"1]", "lists and objects", id="lists"),
        pytest.param(b"[" + b"{}," * 200_000 + b"1]", "lists and objects", id="objects"),
        pytest.param(b"[" + b'"",' * 200_000 + b"1]", "strings", id="strings"),
        pytest.param(b"[" + b"1," * 2_000_000 + b"1]", "values", id="numbers"),
        pytest.param(b"[" * 500 + b"]" * 500, "levels of lists", id="depth"),
        pytest.param(b'"' * 400_000, "strings", id="no-json"),
    ],
)
def test_what_would_grow_is_refused_by_what_there_is_too_much_of(text: bytes, things: str) -> None:
    with pytest.raises(InvalidRequest, match=things):
        check_json(text, "The body")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"prompt": list(range(500_000))}).encode(),
        json.dumps({"prompt": 'say "hi", [friend], {ok}\\' * 150_000}).encode(),
        b'"' + b"\\\\" * 1_000_000 + b'"',
        b'"' + b'\\"[' * 1_000_000 + b'"',
    ],
    ids=["token-ids", "prose", "backslashes", "quotes"],
)
def test_large_texts_that_are_flat_are_taken(text: bytes) -> None:
    check_json(text, "The body")
    msgspec.json.decode(text)
