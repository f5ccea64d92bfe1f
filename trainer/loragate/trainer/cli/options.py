"""The options that the trainer's commands share, and how they print."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def examples(*commands: str) -> str:
    """The end of a help text: one line for each command."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    # \b keeps the lines as they are, where other paragraphs are folded.
    return "\n".join(["\b", title, *(f"  $ {command}" for command in commands)])


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def options_of(
    group: "type[DataclassInstance]", command: Callable[..., None]
) -> Callable[..., None]:
    """`command` with an option for each field of the dataclass `group`, which Typer does not know.

    The command takes the group as its parameter `options`. The options stand in its place, in the
    order of the fields, with the fields' defaults and their `typer.Option` annotations.
    """
    fields = dataclasses.fields(group)

    def expanded(**values: Any) -> None:
        options = group(**{each.name: values.pop(each.name) for each in fields})
        command(**values, options=options)

    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command, eval_str=True).parameters.values():
        parameters += _parameters(group) if each.name == "options" else [each]
    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    # Typer reads the parameters here, and calls with keywords only.
    vars(expanded)["__signature__"] = inspect.Signature(
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return expanded


def _parameters(group: "type[DataclassInstance]") -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(each),
            annotation=hints[each.name],
        )
        for each in dataclasses.fields(group)
    ]


def _default(field: "dataclasses.Field[Any]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
