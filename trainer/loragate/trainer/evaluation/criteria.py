"""What people rate answers by: criteria with a question, a scale and what its numbers mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.table_names import check_name
from loragate.trainer.settings import CriterionSettings

TABLE: Final = "evaluation.rubric"
# Columns of a sheet, and what a judge says of two answers.
_TAKEN: Final = frozenset({"item", "prompt", "wanted", "answer", "scale", "comment", "preference"})
_WIDEST: Final = 100


@dataclass(frozen=True, slots=True)
class Criterion:
    """`low` is the worst number and `high` the best; `anchors` says what some of them mean."""

    name: str
    question: str
    low: int = 1
    high: int = 5
    anchors: Mapping[int, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @property
    def scale(self) -> str:
        """`1 wrong, 3 right in part, 5 right`"""
        return ", ".join(f"{number} {self.anchors[number]}" for number in sorted(self.anchors))

    @property
    def sentence(self) -> str:
        """`accuracy (Is it right?): 1 wrong, 5 right`"""
        asked = f" ({self.question})" if self.question else ""
        return f"{self.name}{asked}: {self.scale}"


KNOWN: Final[Mapping[str, Criterion]] = {
    each.name: each
    for each in (
        Criterion(
            "accuracy",
            "Is what it says right?",
            anchors={1: "wrong", 3: "right in part", 5: "right, with nothing missing"},
        ),
        Criterion(
            "helpfulness",
            "Does it help the one who asked?",
            anchors={1: "no help", 3: "helps in part", 5: "nothing left to ask"},
        ),
        Criterion(
            "tone",
            "Is it said as it should be to this person?",
            anchors={1: "offends, or out of place", 3: "neutral", 5: "just as it should be"},
        ),
        Criterion(
            "creativity",
            "Does it have ideas that are worth having?",
            anchors={1: "none", 3: "one that is expected", 5: "several, and they work"},
        ),
        Criterion(
            "originality",
            "Is it unlike what anybody would write?",
            anchors={1: "read a hundred times", 3: "some turns of its own", 5: "new"},
        ),
        Criterion(
            "brand_voice",
            "Does it sound like us?",
            anchors={1: "like somebody else", 3: "like anybody", 5: "like us"},
        ),
    )
}
USUAL: Final = tuple(KNOWN[name] for name in ("accuracy", "helpfulness", "tone"))


def criteria_of(rubric: Mapping[str, CriterionSettings]) -> tuple[Criterion, ...]:
    """The criteria of [evaluation.rubric], or the usual three. A known name without settings has
    those of `KNOWN`. Raises EvaluationError, naming the table.
    """
    if not rubric:
        return USUAL
    return tuple(_criterion(name, settings) for name, settings in rubric.items())


def _criterion(name: str, settings: CriterionSettings) -> Criterion:
    check_name(TABLE, name, _TAKEN)
    table, known = f"[{TABLE}.{name}]", KNOWN.get(name)
    low, high = settings.low, settings.high
    if not 0 <= low < high <= low + _WIDEST:
        raise EvaluationError(
            f"{table}: the scale goes from {low} to {high}; give 'low' below 'high', 0 or more"
        )
    anchors = dict(_anchors(table, settings))
    if known is not None and not anchors and (low, high) == (known.low, known.high):
        anchors = dict(known.anchors)
    if missing := sorted({low, high} - anchors.keys()):
        raise EvaluationError(
            f"{table} anchors do not say what {' and '.join(map(str, missing))} "
            f"{'mean' if len(missing) > 1 else 'means'}, so everybody would rate by another scale; "
            f'write anchors = {{ {low} = "bad", {high} = "good" }} in your words'
        )
    return Criterion(
        name, settings.question or (known.question if known else ""), low, high, anchors
    )


def _anchors(table: str, settings: CriterionSettings) -> Iterator[tuple[int, str]]:
    low, high = settings.low, settings.high
    for number, meaning in settings.anchors.items():
        if not number.isdecimal() or not low <= int(number) <= high:
            raise EvaluationError(
                f"{table} anchors: {number!r} is no number from {low} to {high}; write "
                f'anchors = {{ {low} = "bad", {high} = "good" }}'
            )
        yield int(number), meaning
