"""What a constraint on the text may hold, seen before anything is compiled of it.

Bounds on sizes and counts, and what the grammar backend would silently leave out. They are generous
beside real schemas and keep what compiles in time apart from what was made to take long; the rest
is for the compiler's own limits. Imported by a small child process: standard library only.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MOST_BYTES: Final = 131_072  # of a schema, a grammar, a structural tag, or all choices together
MOST_REGEX_BYTES: Final = 16_384
MOST_NESTING: Final = 64  # lists and objects of JSON in each other; 16 more in a structural tag
MOST_PROPERTIES: Final = 5_000  # of all objects of a schema, its definitions included
MOST_ENUM_VALUES: Final = 5_000
MOST_BRANCHES: Final = 1_000  # of all anyOf, oneOf, allOf and prefixItems
MOST_REFERENCES: Final = 1_000
MOST_REPEATS: Final = 100_000  # maxLength, minItems, {m,n}: more than any answer is long
MOST_CHOICES: Final = 5_000

_TAG_NESTING: Final = 16
_COUNTS: Final = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_BRANCHES: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_NO_SCHEMAS: Final = frozenset({"enum", "const", "default", "examples", "example"})
_REPEAT: Final = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_FORMATS: Final = frozenset(
    {
        "email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid",
        "uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer",
    }
)  # fmt: skip


class ConstraintRefused(Exception):
    """The constraint is too large, or asks for what is not kept; the message says what to do."""


def check_size(kind: str, size: int) -> None:
    """Raises ConstraintRefused by the length in bytes alone."""
    most = MOST_REGEX_BYTES if kind == "regex" else MOST_BYTES
    if size > most:
        raise ConstraintRefused(f"it has {size} bytes, and may have {most}; make it smaller")


def check_constraint(kind: str, value: str) -> None:
    """Raises ConstraintRefused. `kind` is that of a `StructuredOutput`; a list of choices is to be
    written as a grammar.
    """
    check_size(kind, len(value.encode("utf-8", "surrogatepass")))
    if "\x00" in value:
        raise ConstraintRefused("it has a NUL character; leave it out")
    match kind:
        case "json_schema":
            _check_json(value, MOST_NESTING)
        case "structural_tag":
            _check_json(value, MOST_NESTING + _TAG_NESTING)
        case _:
            _check_repeats(value)


def choices_grammar(choices: Sequence[str]) -> str:
    """The grammar of the texts of which the answer is to be one."""
    return "root ::= " + " | ".join(f'"{_escaped(choice)}"' for choice in choices)


def _escaped(text: str) -> str:
    named = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
    return "".join(
        named.get(letter)
        or (f"\\u{ord(letter):04x}" if ord(letter) < 0x20 or ord(letter) == 0x7F else letter)
        for letter in text
    )


@dataclass(slots=True)
class _Counts:
    """How many there are of what, in all of a schema."""

    properties: int = 0
    enum_values: int = 0
    branches: int = 0
    references: int = 0

    def add(self, schema: Mapping[str, object]) -> None:
        for name in _NAMED:
            self.properties += _length(schema.get(name), Mapping)
        self.enum_values += _length(schema.get("enum"), list)
        for name in _BRANCHES:
            self.branches += _length(schema.get(name), list)
        self.references += isinstance(schema.get("$ref"), str)

    def check(self) -> None:
        for what, count, most in (
            ("properties", self.properties, MOST_PROPERTIES),
            ("enum values", self.enum_values, MOST_ENUM_VALUES),
            ("branches of anyOf, oneOf, allOf and prefixItems", self.branches, MOST_BRANCHES),
            ("references", self.references, MOST_REFERENCES),
        ):
            if count > most:
                raise ConstraintRefused(f"it has more than {most} {what} in all; make it smaller")


def _length(value: object, kind: type[Mapping[str, object]] | type[list[object]]) -> int:
    return len(value) if isinstance(value, kind) else 0


def _check_json(text: str, most_nesting: int) -> None:
    try:
        tree: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintRefused(f"it is not valid JSON: {error}") from None
    counts = _Counts()
    for schema in _objects(tree, most_nesting):
        counts.add(schema)
        counts.check()
        _check_schema(schema)


def _objects(tree: object, most_nesting: int) -> Iterator[Mapping[str, object]]:
    """Every JSON object that may be a schema, level by level: those that are not have nothing that
    counts. Raises ConstraintRefused where they are nested too deeply.
    """
    level: list[object] = [tree]
    for _ in range(most_nesting):
        following: list[object] = []
        for node in level:
            if isinstance(node, dict):
                yield node
                inner = [value for name, value in node.items() if name not in _NO_SCHEMAS]
            else:
                inner = node if isinstance(node, list) else []
            following += [value for value in inner if isinstance(value, dict | list)]
        if not following:
            return
        level = following
    raise ConstraintRefused(
        f"its objects and lists are nested more than {most_nesting} levels deep; make it flatter"
    )


def _check_schema(schema: Mapping[str, object]) -> None:
    """One object of a schema, without those inside of it."""
    for name in _COUNTS & schema.keys():
        count = schema[name]
        if isinstance(count, int | float) and count > MOST_REPEATS:
            raise ConstraintRefused(
                f"{name} is more than {MOST_REPEATS}; lower it, or leave it out and bound the "
                "answer by max_tokens"
            )
    patterns = [schema.get("pattern"), *_names(schema.get("patternProperties"))]
    for pattern in filter(lambda each: isinstance(each, str), patterns):
        assert isinstance(pattern, str)
        if len(pattern.encode("utf-8", "surrogatepass")) > MOST_REGEX_BYTES:
            raise ConstraintRefused(f"a pattern has more than {MOST_REGEX_BYTES} bytes")
        _check_repeats(pattern)
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ConstraintRefused(
            f"$ref {reference[:80]!r} leads out of the schema; put what it means into $defs"
        )
    for is_unsupported in _UNSUPPORTED:
        if what := is_unsupported(schema):
            raise ConstraintRefused(f"{what} is not supported; leave it out and check the answer")


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _check_repeats(text: str) -> None:
    for found in _REPEAT.finditer(text):
        for digits in found.groups():
            if digits and (len(digits) > 9 or int(digits) > MOST_REPEATS):
                raise ConstraintRefused(
                    f"it repeats something more than {MOST_REPEATS} times; lower that"
                )


# What the backend would not keep to, and so must not accept. Each says what, or nothing.


def _types(schema: Mapping[str, object]) -> set[object]:
    named = schema.get("type")
    return {each for each in named if isinstance(each, str)} if isinstance(named, list) else {named}


def _multiples(schema: Mapping[str, object]) -> str | None:
    is_number = bool(_types(schema) & {"integer", "number"})
    return "multipleOf" if is_number and "multipleOf" in schema else None


def _sets(schema: Mapping[str, object]) -> str | None:
    if "array" not in _types(schema):
        return None
    names = ("uniqueItems", "contains", "minContains", "maxContains")
    return next((name for name in names if schema.get(name, False) is not False), None)


def _formats(schema: Mapping[str, object]) -> str | None:
    if "string" not in _types(schema):
        return None
    named = schema.get("format")
    if named is not None and (not isinstance(named, str) or named not in _FORMATS):
        return f"format {str(named)[:80]!r}"
    return "pattern or format together with minLength or maxLength" if _is_twofold(schema) else None


def _is_twofold(schema: Mapping[str, object]) -> bool:
    return bool(
        {"pattern", "format"} & schema.keys() and {"minLength", "maxLength"} & schema.keys()
    )


def _property_names(schema: Mapping[str, object]) -> str | None:
    if "object" not in _types(schema):
        return None
    patterns, names = schema.get("patternProperties"), schema.get("propertyNames")
    if isinstance(patterns, dict):
        if "properties" in schema:
            return "patternProperties together with properties"
        if len(patterns) > 1:
            return "patternProperties with more than one pattern"
    if "propertyNames" not in schema:
        return None
    if isinstance(names, dict) and _is_twofold(names):
        return "pattern or format together with minLength or maxLength in propertyNames"
    if "patternProperties" in schema or "properties" in schema:
        return "propertyNames together with properties or patternProperties"
    if schema.get("unevaluatedProperties", True) is not True:
        return "propertyNames together with unevaluatedProperties"
    return None


def _all_of(schema: Mapping[str, object]) -> str | None:
    branches = schema.get("allOf")
    is_several = isinstance(branches, list) and len(branches) > 1
    return "allOf with more than one schema" if is_several else None


_UNSUPPORTED: Final[tuple[Callable[[Mapping[str, object]], str | None], ...]] = (
    _multiples,
    _sets,
    _formats,
    _property_names,
    _all_of,
)
