"""Tool calls of each family of models, read from whole texts and from pieces of them."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from vllm.parser import ParserManager
from vllm.tool_parsers import ToolParserManager

from loragate.server.core import (
    ChatRequest,
    Delta,
    Message,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolChoice,
)
from loragate.server.engine.vllm.tools import VllmTools
from support.models.tokenizers import byte_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
TOOLS = (Tool("get_weather", "", json.dumps(SCHEMA)), Tool("stop", "", json.dumps(SCHEMA)))
# As vocabularies of these families have them.
ADDED = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>", "[TOOL_CALLS]"),
    *("[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
]
JSON_FAMILIES = ("hermes", "qwen3_json", "llama3_json", "phi4_mini_json", "mistral")
FAMILIES = (*JSON_FAMILIES, "qwen3_coder", "qwen3_xml", "glm45")


def tokenizer() -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    made.add_tokens(ADDED)
    return made


TOKENIZER: Any = tokenizer()  # vLLM's protocol has more than any of the library's classes


def tools(
    family: str, choice: ToolChoice | None = None, *, several: bool = True, strict: bool = False
) -> VllmTools:
    offered = tuple(replace(tool, strict=strict) for tool in TOOLS)
    parser_class = ParserManager.get_parser(tool_parser_name=family, enable_auto_tools=True)
    assert parser_class is not None
    request = ChatRequest(
        "base",
        (Message("user", "hi"),),
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=several,
    )
    return VllmTools(parser_class, family, TOKENIZER, None, request)


def written(family: str, name: str, arguments: dict[str, object]) -> str:
    """A call as a model of the family writes it."""
    match family:
        case "hermes" | "qwen3_json":
            call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            return f"<tool_call>\n{call}\n</tool_call>"
        case "llama3_json":
            return json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)
        case "phi4_mini_json":
            call = json.dumps([{"name": name, "arguments": arguments}], ensure_ascii=False)
            return f"functools{call}"
        case "mistral":
            return f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}"
        case "glm45":
            inner = "".join(
                f"<arg_key>{key}</arg_key>\n<arg_value>{_xml(value)}</arg_value>\n"
                for key, value in arguments.items()
            )
            return f"<tool_call>{name}\n{inner}</tool_call>"
        case _:
            inner = "".join(
                f"<parameter={key}>\n{_xml(value)}\n</parameter>\n"
                for key, value in arguments.items()
            )
            return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def _xml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


Read = tuple[str, list[tuple[str, dict[str, object]]]]


def read(bound: VllmTools, pieces: list[str]) -> Read:
    """The content, and the calls with their arguments, which have to be a JSON object."""
    parser, content, calls = bound.parser(), "", []
    for i, piece in enumerate(pieces):
        is_last = i == len(pieces) - 1
        text, made = parser.push(
            Delta(index=0, text=piece, finish_reason="stop" if is_last else None)
        )
        content += text
        calls += made
    assert [call.index for call in calls] == list(range(len(calls)))
    assert all(call.id for call in calls)
    found = [(call.name or "", json.loads(call.arguments)) for call in calls]
    assert all(isinstance(arguments, dict) for _, arguments in found)
    return content, found


def divided(text: str, seed: int) -> list[str]:
    chance, pieces = random.Random(seed), []
    while text:
        length = chance.choice((1, 2, 3, 9))
        pieces.append(text[:length])
        text = text[length:]
    return [*pieces, ""]


def read_both_ways(bound: VllmTools, text: str) -> Read:
    whole = read(bound, [text])
    for seed in range(5):
        assert read(bound, divided(text, seed)) == whole
    return whole


ROME: dict[str, object] = {"city": "Rome", "days": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_read_as_it_was_meant(family: str) -> None:
    text = written(family, "get_weather", ROME)
    assert read_both_ways(tools(family), text) == ("", [("get_weather", ROME)])


@pytest.mark.parametrize("family", FAMILIES)
def test_several_calls_and_the_text_around_them_are_all_there(family: str) -> None:
    one, other = written(family, "get_weather", ROME), written(family, "stop", {})
    text = f"I look. {one}\n{other} Then I tell."
    expected = [("get_weather", ROME), ("stop", {})]
    assert read_both_ways(tools(family), text) == ("I look.  Then I tell.", expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "value",
    [
        "</tool_call>",
        "<tool_call>",
        "a</parameter>b",
        "</arg_value>",
        "]",
        '"}',
        "[TOOL_CALLS]",
        "ü{😀",
    ],
)
def test_a_tag_within_an_argument_does_not_end_the_call(family: str, value: str) -> None:
    arguments: dict[str, object] = {"city": value, "tags": ["x", value]}
    text = written(family, "get_weather", arguments) + " bye"
    assert read_both_ways(tools(family), text) == (" bye", [("get_weather", arguments)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_without_arguments_has_an_empty_object(family: str) -> None:
    assert read_both_ways(tools(family), written(family, "stop", {})) == ("", [("stop", {})])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_that_is_cut_stays_text(family: str) -> None:
    text = written(family, "get_weather", ROME)
    for end in range(1, text.index("Rome") + 2):
        assert read(tools(family), [text[:end]]) == (text[:end], [])
    assert read_both_ways(tools(family), text[: text.index("Rome") + 2])[1] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_function_that_is_not_offered_is_not_called(family: str) -> None:
    text = written(family, "get_time", ROME)
    assert read_both_ways(tools(family), f"{text} bye") == (f"{text} bye", [])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        *((family, "Write <tool_call> and </tool_call> around it.") for family in FAMILIES),
        ("hermes", '<tool_call>{"name": get_weather}</tool_call> more'),
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": "Rome"}</tool_call> more'),
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "stop", "arguments": {"days": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "stop", "arguments": {"days": 1e999}}</tool_call>'),
        ("mistral", '[TOOL_CALLS]stop[ARGS]{"days": -1e999}'),
        ("hermes", '<tool_call>{"arguments": {"name": "stop"}}</tool_call>'),
        ("qwen3_coder", "<tool_call>get_weather</tool_call> more"),
        ("qwen3_coder", "<tool_call><function=get_weather>Rome</function></tool_call> more"),
        ("glm45", "<tool_call>get_weather Rome</tool_call> more"),
        ("llama3_json", 'A set {1, 2}, an object {"a": 1} and {"name": "Rome"}; bye'),
        ("phi4_mini_json", "Python's functools[x], functools[{}] and functools"),
        ("mistral", "Say [TOOL_CALLS] please"),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Ro'),
        ("pythonic", "[get_weather(city='Rome')] is how"),
        ("pythonic", "[1, 2] and [get_weather()]"),
    ],
)
def test_what_is_no_call_is_text_to_its_last_character(family: str, text: str) -> None:
    assert read_both_ways(tools(family), text) == (text, [])


def test_arguments_before_the_name_do_not_name_the_function() -> None:
    text = '<tool_call>{"arguments": {"name": "stop"}, "name": "get_weather"}</tool_call>'
    assert read_both_ways(tools("hermes"), text) == ("", [("get_weather", {"name": "stop"})])


ROME_IN_XML = "<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>"


def test_calls_of_qwen_s_need_no_outer_tags_between_and_around_text() -> None:
    text = f"So: {ROME_IN_XML}\n{ROME_IN_XML} and <function=other>\n</function> <function=stop>"
    calls = [("get_weather", {"city": "Rome"})] * 2
    content = "So:  and <function=other>\n</function> <function=stop>"
    assert read_both_ways(tools("qwen3_coder"), text) == (content, calls)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}'),
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_'),
        ("llama3_json", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Rome"}}'),
        (
            "llama3_json",
            '{"name": "get_weather", "arguments": null, "parameters": {"city": "Rome"}}',
        ),
        ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome"}}]'),
        ("mistral", '[TOOL_CALLS]get_weather{"city": "Rome"}'),
        ("pythonic", "[get_weather(city='Rome')]"),
        *(
            (family, f"{begin}{ROME_IN_XML}{end}")
            for family in ("qwen3_coder", "qwen3_xml")
            for begin in ("", "<tool_call>\n")
            for end in ("", "\n", "\n</tool_c", "\n</tool_call>")
        ),
    ],
)
def test_other_ways_of_writing_a_call(family: str, text: str) -> None:
    assert read_both_ways(tools(family), text) == ("", [("get_weather", {"city": "Rome"})])


def test_llama_divides_calls_by_semicolons() -> None:
    text = '{"name": "stop", "parameters": {}}; {"name": "stop", "parameters": {}};'
    assert read_both_ways(tools("llama3_json"), text) == ("", [("stop", {}), ("stop", {})])


def test_half_of_a_surrogate_pair_in_an_argument_can_be_sent() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "\\ud800"}}</tool_call>'
    ((_, arguments),) = read(tools("hermes"), [text])[1]
    assert arguments == {"city": "\ud800"}
    parser = tools("hermes").parser()
    (call,) = parser.push(Delta(index=0, text=text, finish_reason="stop"))[1]
    assert call.arguments.encode()


def test_text_goes_out_at_once_and_a_call_once_it_is_complete() -> None:
    parser = tools("hermes").parser()
    pieces = ["I ", "look <b>", " <tool", "_call>", '{"name": "stop"}', "</tool_call>", " so"]
    answers = [parser.push(Delta(index=0, text=piece)) for piece in pieces]
    assert [text for text, _ in answers] == ["I ", "look <b>", " ", "", "", "", " so"]
    assert [len(calls) for _, calls in answers] == [0, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_parallel_calls_there_is_one(family: str) -> None:
    text = written(family, "get_weather", ROME) + written(family, "stop", {})
    bound = tools(family, several=False)
    assert read_both_ways(bound, text)[1] == [("get_weather", ROME)]


texts = st.lists(
    st.sampled_from(
        [
            *(f"{each} " for each in ADDED),
            '{"name": "stop"',
            '"arguments": {}',
            "}",
            "{",
            "[",
            "]",
            "functools",
            "<function=stop>",
            "</function>",
            "stop",
            "\n",
            "text",
            '"',
        ]
    )
).map("".join)


@pytest.mark.parametrize("family", [*FAMILIES, "pythonic"])
@given(text=texts, seed=st.integers(0, 99))
def test_any_text_gives_the_same_whole_and_in_pieces_and_without_calls_is_kept(
    family: str, text: str, seed: int
) -> None:
    bound = BOUND[family]
    content, calls = read(bound, [text])
    assert read(bound, divided(text, seed)) == (content, calls)
    assert {name for name, _ in calls} <= {"stop"}
    if not calls:
        assert content == text


BOUND = {family: tools(family) for family in [*FAMILIES, "pythonic"]}


# ---- calls that have to be made

NAMED = ToolChoice("named", "get_weather")
REQUIRED = ToolChoice("required")


@pytest.mark.parametrize("choice", [NAMED, REQUIRED])
@pytest.mark.parametrize("family", [*FAMILIES, "pythonic"])
def test_a_forced_call_that_is_cut_is_a_call_without_arguments(
    family: str, choice: ToolChoice
) -> None:
    bound = tools(family, choice)
    text = written(family, "get_weather", ROME)
    if family in ("phi4_mini_json", "pythonic"):  # whose forced calls are plain JSON
        text = '{"city": "Rome"}'
        if choice is REQUIRED:
            text = json.dumps([{"name": "get_weather", "parameters": {"city": "Rome"}}])
    cut = text[: text.index("Rome") + 2]
    assert read_both_ways(bound, cut) == ("", [("get_weather", {})])
    assert read_both_ways(bound, text)[1][0][1]["city"] == "Rome"


@pytest.mark.parametrize("choice", [NAMED, REQUIRED])
@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "glm45", "mistral"])
def test_a_forced_call_that_is_cut_before_its_name_is_none(family: str, choice: ToolChoice) -> None:
    text = written(family, "get_weather", ROME)
    cut = text[: text.index("get_weather") + 5]
    assert read_both_ways(tools(family, choice), cut) == (cut, [])


@pytest.mark.parametrize("choice", [NAMED, REQUIRED])
@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "llama3_json", "pythonic"])
def test_a_forced_call_is_held_to_its_schema_also_where_nobody_said_strict(
    family: str, choice: ToolChoice
) -> None:
    structured = tools(family, choice).bind(SamplingParams()).structured
    assert structured is not None
    assert structured == tools(family, choice, strict=True).bind(SamplingParams()).structured
    assert '"days"' in structured.value


def test_a_call_that_the_model_may_make_is_held_to_its_schema_where_it_is_strict() -> None:
    assert tools("hermes").bind(SamplingParams()).structured is None
    assert tools("hermes", strict=True).bind(SamplingParams()).structured is not None


def test_a_forced_call_goes_before_a_response_format_and_that_before_a_call_that_may_be() -> None:
    asked = SamplingParams(structured=StructuredOutput("json_object"))
    assert tools("hermes", REQUIRED).bind(asked) == tools("hermes", REQUIRED).bind(SamplingParams())
    assert tools("hermes", strict=True).bind(asked).structured == asked.structured


def test_parsers_that_are_known_to_vllm_alone_read_a_whole_answer() -> None:
    """All that vLLM has: each that can be made loses no text that has nothing of a call."""
    read_by = 0
    for family in ToolParserManager.list_registered():
        try:
            bound = tools(family)
        except Exception:  # noqa: BLE001 - needs tokens that this vocabulary does not have
            continue
        read_by += 1
        assert read_both_ways(bound, "Just text, a line.") == ("Just text, a line.", [])
    assert read_by > len(FAMILIES)
