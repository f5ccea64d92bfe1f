"""Every form of rows, and what none of them can say here."""

import pytest

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.reading import Fields, convert
from loragate.trainer.data.settings import Reading


def converted(row: Fields, reading: Reading | None = None) -> Example:
    return convert(row, reading or Reading())[0]


def said(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


PAIR = [("user", "Why?"), ("assistant", "So.")]
SYSTEM = ("system", "Be kind.")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Why?", "output": "So."}, PAIR),
        ({"instruction": "Why?", "input": "", "output": "So.", "history": []}, PAIR),
        (
            {"instruction": "Sort:", "input": "Why?", "output": "So.", "system": "Be kind."},
            [SYSTEM, ("user", "Sort:\n\nWhy?"), ("assistant", "So.")],
        ),
        ({"prompt": "Why?", "completion": "So."}, PAIR),
        ({"prompt": "Why?", "completion": "So.", "system": "Be kind."}, [SYSTEM, *PAIR]),
        (
            {
                "prompt": [{"role": "user", "content": "Why?"}],
                "completion": [{"role": "assistant", "content": "So."}],
            },
            PAIR,
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "Be kind."},
                    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
                    {"role": "assistant", "content": "So.", "weight": 1},
                ]
            },
            [SYSTEM, *PAIR],
        ),
        (
            {
                "system": "Be kind.",
                "conversations": [
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "So."},
                ],
            },
            [SYSTEM, *PAIR],
        ),
    ],
)
def test_each_form_becomes_messages(row: dict[str, object], messages: list[tuple[str, str]]):
    assert said(converted(row)) == messages


def test_label_group_and_id_are_taken_from_the_fields_named():
    row = {"prompt": "Why?", "completion": "So.", "class": "x", "customer": 7, "id": "r1"}
    example = converted(row, Reading(label_field="class", group_field="customer"))
    assert (example.label, example.group, example.id) == ("x", "7", "r1")


def test_an_empty_group_is_none_so_that_such_rows_are_not_joined():
    assert converted({"prompt": "Why?", "completion": "So.", "group": ""}).group is None


def test_fields_that_are_not_read_are_named():
    assert convert({"prompt": "a", "completion": "b", "date": "x"}, Reading())[1] == {"date"}


def test_a_given_format_goes_before_what_the_fields_say():
    row = {"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}
    assert said(converted(row, Reading(format="instruction")))[0] == ("user", "i")
    with pytest.raises(DataError, match="'messages' of the format 'messages' is missing"):
        converted(row, Reading(format="messages"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "a", "reply": "b"}, "question, reply make none of the known formats"),
        ({"prompt": 3, "completion": "b"}, "'prompt' must be text"),
        ({"messages": "hi"}, "must be a list"),
        ({"messages": ["hi"]}, "a turn must be an object"),
        ({"messages": [{"role": "customer", "content": "a"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": 5}]}, "neither text nor a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "only text can be learnt",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "calls a tool",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools cannot be"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "weight other than 1"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "'from' must be one of"),
        ({"conversations": {"from": "human"}}, "must be a list"),
        ({"instruction": "a", "output": "b", "history": [["x", "y"]]}, "'history' is not read"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "Hi"},
                    {"role": "user", "content": "a"},
                ]
            },
            "begins with the assistant",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_and_not_left_out(row: dict[str, object], reason: str):
    with pytest.raises(DataError, match=reason):
        converted(row)
