import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import product

import psutil
import pytest

from loragate.server.core import StructuredOutput
from loragate.server.engine.grammars.compiler import Grammars, vocabulary_of
from loragate.server.errors import InvalidRequest, Overloaded
from support.models.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def vocabulary() -> str:
    """Bytes, and some thousand words, so that grammars cost what they do with a real model."""
    words = ["".join(each) for size in (2, 3) for each in product("aebdinrstĠ0{,", repeat=size)]
    words += [first + second for first, second in product(words[:60], repeat=2)]
    fast = byte_tokenizer(more=words)
    return vocabulary_of(fast, len(fast))


@pytest.fixture(scope="module")
def shared(vocabulary: str) -> Iterator[Grammars]:
    with closing(Grammars(lambda: vocabulary, timeout_seconds=0.5)) as grammars:
        yield grammars


def schema(**said: object) -> StructuredOutput:
    return StructuredOutput("json_schema", json.dumps(said), param="response_format")


def grammar(text: str) -> StructuredOutput:
    return StructuredOutput("grammar", text)


def regex(text: str) -> StructuredOutput:
    return StructuredOutput("regex", text)


def tag(**said: object) -> StructuredOutput:
    return StructuredOutput("structural_tag", json.dumps({"type": "structural_tag", **said}))


def text(**said: object) -> dict[str, object]:
    return {"type": "string", **said}


def nested(depth: int) -> dict[str, object]:
    inner: dict[str, object] = text()
    for _ in range(depth):
        inner = {"anyOf": [inner, {"type": "object", "properties": {"a": inner}}]}
    return inner


OPTIONAL = "root ::= " + " ".join(["[a-z]?"] * 300)
GOOD = [
    schema(type="object"),
    schema(type="object", properties={"id": text(format="uuid"), "n": {"type": "integer"}}),
    schema(
        type="array",
        maxItems=100,
        items={
            "type": "object",
            "properties": {f"field {n}": text(maxLength=20) for n in range(40)},
            "required": ["field 0"],
        },
    ),
    schema(**{"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}),  # noqa: E501
    schema(enum=[f"value {n}" for n in range(1000)]),
    schema(type="object", patternProperties={"^x_": {"type": "number"}}),
    schema(type="object", properties={"enum": text(), "maxLength": {"type": "integer"}}),
    schema(type="array", items=text(), uniqueItems=False),
    schema(type="string", default="maxLength", examples=[{"maxLength": 10**9}]),
    regex(r"\d{4}-\d{2}-\d{2}"),
    regex(r"(\w+ ){5,20}\w+\."),
    grammar('root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "(" expr ")"'),
    grammar('start: "yes" | "no"'),
    StructuredOutput("choice", choices=('"', "\\", "\n", "é", "no\x01")),
    StructuredOutput("choice", choices=tuple(f"choice {n}" for n in range(1000))),
    StructuredOutput("json_object"),
    tag(format={"type": "json_schema", "json_schema": {"type": "object"}}),
    StructuredOutput(
        "structural_tag",
        json.dumps(
            {
                "structures": [{"begin": "<a>", "schema": {"type": "object"}, "end": "</a>"}],
                "triggers": ["<a"],
            }
        ),
    ),
]  # fmt: skip
TOO_LARGE = [
    (schema(**nested(13)), r"has \d+ bytes, and may have 131072"),
    (schema(properties={f"{n}": {} for n in range(5001)}), "more than 5000 properties"),
    (schema(enum=list(range(5001))), "more than 5000 enum values"),
    (schema(anyOf=[{"type": "null"}] * 1001), "more than 1000 branches"),
    (schema(anyOf=[{"anyOf": [{"$ref": "#"}] * 99}] * 11), "more than 1000 "),
    (schema(type="string", maxLength=1_000_000), "maxLength is more than 100000"),
    (schema(type="array", minItems=1e30), "minItems is more than 100000"),
    (schema(type="string", pattern="a{1,1000000}"), "more than 100000 times"),
    (schema(patternProperties={"a{1000000}": {}}), "more than 100000 times"),
    (regex(r"[\u0000-\U0010FFFF]{1,2000000}"), "more than 100000 times"),
    (regex("a" * 16_385), "has 16385 bytes, and may have 16384"),
    (grammar('root ::= "a"{99999999999999999999}'), "more than 100000 times"),
    (grammar("root ::= " + '"a" ' * 40_000), r"has \d+ bytes"),
    (StructuredOutput("choice", choices=("a",) * 5001), "has 5001 choices"),
    (StructuredOutput("choice", choices=("a" * 200_000,)), r"has \d+ bytes"),
    (StructuredOutput("json_schema", '{"items":' * 99 + "{}" + "}" * 99), "more than 64 levels"),
    (tag(format={"type": "json_schema", "json_schema": text(maxLength=10**9)}), "maxLength"),
]
TOO_SLOW = [
    (grammar(OPTIONAL), r"to try it takes more than 0\.5 s"),
    (grammar("root ::= ((([a-z]*)*)*)*"), "ms for a token|to try it takes"),
    (grammar("root ::= E\nE ::= E E E | E E | [a-z]"), "ms for a token|to try it takes"),
    (regex("((a+)+)+b"), "ms for a token|to try it takes"),
    (grammar("root ::= root"), "no text can satisfy it"),
    (schema(**{"$ref": "#"}), "no text can satisfy it"),
]  # fmt: skip
MALFORMED = [
    (schema(patternProperties={"(": {}}, type="object"), "The parenthesis is not closed"),
    (schema(type="integer", minimum=10, maximum=1), "minimum greater than maximum"),
    (schema(type="string", minLength=10, maxLength=1), "minLength 10 is greater than maxLength 1"),
    (schema(type="nonsense"), 'Unsupported type "nonsense"'),
    (schema(type="string", minLength="one"), "minLength must be an integer"),
    (schema(type="object", properties=[1]), "properties must be an object"),
    (schema(**{"$ref": "#/$defs/none"}), "Cannot find field"),
    (schema(**{"$ref": "http://example.com/s.json"}), "leads out of the schema"),
    (grammar('root ::= "a"\nroot ::= "b"'), 'Rule "root" is defined multiple times'),
    (grammar('tree ::= "a"'), 'root rule with name "root" is not found'),
    (grammar('root ::= "a'), "string literal"),
    (grammar('root ::= "\ud800"'), "surrogates not allowed"),
    (grammar('root ::= "a\x00"'), "NUL"),
    (regex("("), "The parenthesis is not closed"),
    (regex("a{5,1}"), "Lower bound is larger than upper bound"),
    (regex(r"\bfoo"), "Word boundary is not supported"),
    (regex("(" * 5000 + "a" + ")" * 5000), "Nest layer"),
    (tag(), "must have a format field"),
    (tag(format={"type": "nonsense"}), "Format type not recognized"),
    (tag(format={"type": "regex", "pattern": "("}), "The parenthesis is not closed"),
    (StructuredOutput("structural_tag", "{"), "not valid JSON"),
    (StructuredOutput("structural_tag", '{"structures": [{}], "triggers": []}'), "begin"),
]
UNSUPPORTED = [
    (schema(type="number", multipleOf=0.01), "multipleOf is not supported"),
    (schema(type=["array", "null"], uniqueItems=True), "uniqueItems is not supported"),
    (schema(type="array", contains={}), "contains is not supported"),
    (schema(type="string", format="iri"), "format 'iri' is not supported"),
    (schema(properties={"a": text(pattern="a", maxLength=3)}), "pattern or format together with"),
    (schema(type="object", properties={}, patternProperties={}), "patternProperties together"),
    (schema(type="object", propertyNames={"pattern": "a", "maxLength": 1}), "in propertyNames"),
    (schema(allOf=[{"type": "string"}, {"maxLength": 3}]), "allOf with more than one schema"),
]
REFUSED = TOO_LARGE + TOO_SLOW + MALFORMED + UNSUPPORTED


@pytest.mark.parametrize("constraint", GOOD, ids=range(len(GOOD)))
async def test_usual_constraint_passes(shared: Grammars, constraint: StructuredOutput):
    await shared.check(constraint, "acme")


@pytest.mark.parametrize(("constraint", "reason"), REFUSED, ids=range(len(REFUSED)))
async def test_constraint_that_cannot_be_served_is_refused_and_costs_this_process_nothing(
    shared: Grammars, constraint: StructuredOutput, reason: str
):
    await shared.check(GOOD[0], "acme")
    own = psutil.Process()
    memory, processor = own.memory_info().rss, time.process_time()

    with pytest.raises(InvalidRequest, match=reason) as refused:
        await shared.check(constraint, "acme")

    assert refused.value.param == "response_format"
    assert "cannot be used" in str(refused.value)
    assert "/cpp/" not in str(refused.value)
    assert own.memory_info().rss - memory < 16 * 2**20
    assert time.process_time() - processor < 0.3
    with pytest.raises(InvalidRequest, match=reason):  # as before, and remembered
        await shared.check(constraint, "globex")


async def test_what_was_tried_costs_nothing_the_next_time(vocabulary: str):
    grammars = Grammars(lambda: vocabulary, timeout_seconds=5)
    good, bad = regex("a+b"), regex("a+(")
    await grammars.check(good, "acme")
    with pytest.raises(InvalidRequest):
        await grammars.check(bad, "acme")
    grammars.close()

    await grammars.check(good, "globex")  # nobody is left to try it
    with pytest.raises(InvalidRequest):
        await grammars.check(bad, "globex")


async def test_bombs_of_one_tenant_leave_the_others_a_child(vocabulary: str):
    grammars = Grammars(lambda: vocabulary, timeout_seconds=60)
    bombs = [
        asyncio.create_task(grammars.check(grammar(f"{OPTIONAL} {'[a-z]? ' * n}"), "acme"))
        for n in range(5)
    ]
    await asyncio.sleep(0)

    await grammars.check(regex("of another"), "globex")

    assert not any(bomb.done() for bomb in bombs)
    grammars.close()
    assert not grammars.pids
    for bomb in bombs:
        bomb.cancel()
        with suppress(asyncio.CancelledError):
            await bomb


async def test_constraint_that_many_send_at_once_is_tried_once(shared: Grammars):
    constraint = regex("(many at once)+")

    await asyncio.gather(*(shared.check(constraint, "acme") for _ in range(500)))


async def test_trial_goes_on_for_others_where_its_client_leaves(shared: Grammars):
    constraint = regex("(leaves early)+")
    leaving = asyncio.create_task(shared.check(constraint, "acme"))
    staying = asyncio.create_task(shared.check(constraint, "acme"))
    await asyncio.sleep(0)
    leaving.cancel()

    await staying
    assert leaving.cancelled() or leaving.done()


async def test_more_constraints_than_may_wait_are_told_to_come_again(vocabulary: str):
    grammars = Grammars(lambda: vocabulary, timeout_seconds=60)
    asked = [
        asyncio.create_task(grammars.check(grammar(f"{OPTIONAL} {'[a-z]? ' * n}"), "acme"))
        for n in range(70)
    ]
    done, _ = await asyncio.wait(asked, timeout=5, return_when=asyncio.FIRST_COMPLETED)

    assert isinstance(done.pop().exception(), Overloaded)
    grammars.close()
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_child_that_somebody_killed_is_replaced(shared: Grammars):
    await shared.check(regex("(before the kill)+"), "acme")
    for pid in shared.pids:
        os.kill(pid, signal.SIGKILL)

    await shared.check(regex("(after the kill)+"), "acme")


async def test_child_is_small_and_yields_to_everything_else(shared: Grammars):
    await shared.check(regex("(how large)+"), "acme")

    for pid in shared.pids:
        child = psutil.Process(pid)
        assert child.nice() == min(19, psutil.Process().nice() + 5)
        assert child.memory_info().rss < 300 * 2**20
