"""Every form of rows, and what none of them can say here."""

import json
from typing import cast

import pytest

from loragate.trainer.data.example import DataError, Example, from_json
from loragate.trainer.data.formats import Fields, RejectedAnswer, convert
from loragate.trainer.data.settings import Reading


def converted(row: Fields, reading: Reading | None = None) -> Example:
    return convert(row, reading or Reading())[0]


def said(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


PAIR = [("user", "Why?"), ("assistant", "So.")]
SYSTEM = ("system", "Be kind.")
TEXT = {"type": "text", "text": "So."}
THOUGHT = {"type": "thinking", "thinking": "Hm."}


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
            [("developer", "Be kind."), *PAIR],
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
        (
            {
                "system": "Be kind.",
                "prompt": [{"role": "user", "content": "Why?"}],
                "completion": [{"role": "assistant", "content": "So."}],
            },
            [SYSTEM, *PAIR],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": " "},
                    {"from": "human", "value": [{"type": "text", "value": "Why?"}]},
                    {"from": "gpt", "value": "So."},
                ]
            },
            PAIR,
        ),
        ({"prompt": None, "completion": None, "instruction": "Why?", "output": "So."}, PAIR),
        ({"prompt": "Why?", "completion": "So.", "instruction": None, "output": None}, PAIR),
        ({"prompt": "", "completion": "", "instruction": "Why?", "output": "So."}, PAIR),
        ({"messages": None, "prompt": "Why?", "completion": "So.", "image": None}, PAIR),
    ],
)
def test_each_form_becomes_messages(row: dict[str, object], messages: list[tuple[str, str]]):
    assert said(converted(row)) == messages


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_what_an_answer_thinks_first_is_kept(name: str):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    of_turn = converted({"messages": [turns[0], turns[1] | {name: "Hm."}]})
    of_row = converted({"prompt": "Why?", "completion": "So.", name: "Hm."})
    of_part = converted({"messages": [turns[0], {"role": "assistant", "content": [THOUGHT, TEXT]}]})
    for example in (of_turn, of_row, of_part):
        assert example.messages[-1].reasoning == "Hm."
        assert example.answer == "So."


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", 0), ("weight", 0.0), ("train", False), ("loss", False), ("training", 0)],
)
@pytest.mark.parametrize("dialect", [("role", "content", "assistant"), ("from", "value", "gpt")])
def test_an_answer_that_is_not_to_be_learnt_is_only_read(
    name: str, value: object, dialect: tuple[str, str, str]
):
    role, content, assistant = dialect
    turns = [
        {role: "user", content: "Why?"},
        {role: assistant, content: "Go away.", name: value},
        {role: "user", content: "Please."},
        {role: assistant, content: "So.", name: None},
        {role: "user", content: "Thanks."},
        {role: assistant, content: "Bye.", name: value},
    ]
    example = converted({"messages" if role == "role" else "conversations": turns})
    assert example.unlearnt == {1}
    assert example.answer == "So."  # what stands behind the last that is learnt teaches nothing


CALL = {"name": "find", "arguments": {"city": "Bern"}}
TOOL = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
OPENAI = {
    "tools": [{"type": "function", "function": {**TOOL, "strict": True}}],
    "messages": [
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "find", "arguments": '{"city": "Bern"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "[46, 7]"},
        {"role": "assistant", "content": "There."},
    ],
}
SHAREGPT = {
    "tools": json.dumps([TOOL]),
    "conversations": [
        {"from": "human", "value": "Where?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": [46, 7]},
        {"from": "gpt", "value": "There."},
    ],
}
OLD = {
    "functions": [TOOL],
    "messages": [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "function_call": CALL},
        {"role": "function", "name": "find", "content": "[46, 7]"},
        {"role": "assistant", "content": "There."},
    ],
}


@pytest.mark.parametrize("row", [OPENAI, SHAREGPT, OLD], ids=["openai", "sharegpt", "old"])
def test_calls_of_tools_and_their_results_are_kept_in_every_dialect(row: dict[str, object]):
    example, unread = convert(row, Reading())
    assert not unread
    assert [turn.role for turn in example.messages] == ["user", "assistant", "tool", "assistant"]
    (call,) = example.messages[1].calls
    assert (call.name, json.loads(call.arguments)) == ("find", {"city": "Bern"})
    assert example.messages[2].content == "[46, 7]"
    assert example.tool_list() == [{"type": "function", "function": TOOL}]
    _, asked, result, _ = example.turns()
    (asked_call,) = cast(list[dict[str, object]], asked["tool_calls"])
    assert result["tool_call_id"] == asked_call["id"]
    assert from_json(example.to_json()) == example


def test_text_and_calls_of_turns_of_their_own_are_one_answer():
    turns = [
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": json.dumps([CALL, CALL])},
        {"from": "function_call", "value": json.dumps(CALL)},
    ]
    answer = converted({"conversations": turns, "tools": [TOOL]}).messages[-1]
    assert (answer.content, len(answer.calls)) == ("I look.", 3)


def test_fields_of_turns_that_are_not_read_are_named():
    turns = [{"role": "user", "content": "a", "mood": "low"}, {"role": "assistant", "content": "b"}]
    assert convert({"messages": turns}, Reading())[1] == {"messages[].mood"}


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
            "a call of a tool has no 'name'",
        ),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": [{"name": "f"}]}]},
            "of the user calls a tool",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "1"}}]},
            "arguments of a call of 'f' are no JSON object",
        ),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "must be JSON with"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "a tool has no 'name'"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": "f(x)"}, "'tools' is no JSON"),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            r"'weight' of 0\.5; a turn is learnt \(1\) or not \(0\)",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "mask": True}]},
            "the field 'mask', which may say that it is not to be learnt",
        ),
        ({"prompt": "a", "completion": "b", "image": "0.jpg"}, "picture, .* in the field 'image'"),
        ({"prompt": "<image>\nWhat is it?", "completion": "b"}, "the placeholder <image>"),
        (
            {
                "system": "a",
                "messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
            },
            "a 'system' field and a system turn",
        ),
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


@pytest.mark.parametrize(
    ("row", "question", "answer", "label"),
    [
        ({"text": "hello", "category": "greet"}, "hello", "greet", "greet"),
        ({"text": "hello", "label": 3}, "hello", "3", "3"),
        ({"question": "Who?", "answer": "Me."}, "Who?", "Me.", None),
        ({"context": "Who?", "response": "Me."}, "Who?", "Me.", None),
        ({"instruction": "Sum up", "context": "Long.", "response": "L."}, "Sum up\n\nLong.", "L.",
         None),
        ({"prompt": "Who?", "response": "Me.", "id": "7"}, "Who?", "Me.", None),
    ],
)  # fmt: skip
def test_usual_names_of_question_and_answer_are_known(
    row: Fields, question: str, answer: str, label: str | None
):
    example, ignored = convert(row, Reading())
    assert (example.prompt, example.answer, example.label) == (question, answer, label)
    assert ignored == frozenset()


def test_fields_can_be_named():
    reading = Reading(fields=(("prompt", "frage"), ("completion", "klasse"), ("label", "klasse")))
    example, _ = convert({"frage": "Wo?", "klasse": "ort", "text": "no"}, reading)
    assert (example.prompt, example.answer, example.label) == ("Wo?", "ort", "ort")
    with pytest.raises(DataError, match=r"'frage'.* is missing; the row has text"):
        convert({"text": "no"}, reading)


TALK = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant: "
ASKED = {"role": "user", "content": "Who?"}
GOOD_TURN, BAD_TURN = ({"role": "assistant", "content": text} for text in ("Me.", "Go away."))
PREFERENCES: list[Fields] = [
    {"prompt": "Who?", "chosen": "Me.", "rejected": "Go away."},
    {"chosen": f"{TALK}Me.", "rejected": f"{TALK}Go away."},
    {"prompt": [ASKED], "chosen": [GOOD_TURN], "rejected": [BAD_TURN]},
    {"prompt": "Who?", "messages": [ASKED, BAD_TURN], "chosen": [ASKED, GOOD_TURN],
     "rejected": [ASKED, BAD_TURN], "score_chosen": 8.0, "score_rejected": 2.0},
    {"messages": [ASKED, GOOD_TURN], "label": True},
    {"prompt": "Who?", "completion": "Me.", "label": "True"},
]  # fmt: skip


@pytest.mark.parametrize("row", PREFERENCES)
def test_preference_data_are_refused_by_name_or_their_good_answers_learnt(row: Fields):
    with pytest.raises(DataError, match=r"preference data.*--preferences chosen"):
        convert(row, Reading())
    example, _ = convert(row, Reading(preferences="chosen"))
    assert (example.answer, example.label) == ("Me.", None)
    assert example.messages[-2].content == "Who?"


def test_answers_that_were_found_bad_are_never_learnt():
    with pytest.raises(RejectedAnswer):
        convert({"messages": [ASKED, BAD_TURN], "label": False}, Reading(preferences="chosen"))


def test_true_and_false_as_classes_are_no_preferences():
    example, _ = convert({"prompt": "Is it so?", "completion": "True", "label": "true"}, Reading())
    assert example.label == "true"
