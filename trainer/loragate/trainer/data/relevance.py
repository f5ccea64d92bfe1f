"""Whether rows are about what is really asked: they are compared with a file of real questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from loragate.trainer.data.example import DataError, Example, Message
from loragate.trainer.data.files import rows_of
from loragate.trainer.data.pieces import nearest
from loragate.trainer.data.quality import Finding
from loragate.trainer.data.settings import Reading
from loragate.trainer.data.similarity import cores_of

NEAR = 0.4  # likeness; a question below it to every row is about something else
_NAMES = ("prompt", "question", "query", "text", "instruction", "utterance", "input")
_SHOWN = 3  # questions
_WARN_FROM = 0.2  # of the questions


@dataclass(frozen=True, slots=True)
class Relevance:
    """Of the real `questions`, those that are `far` from every row; and of `rows`, how many are
    near no question.
    """

    questions: int
    far: tuple[str, ...]
    rows: int
    unasked: int

    def finding(self) -> Finding:
        share = len(self.far) / self.questions
        some = "; ".join(repr(" ".join(text.split())[:80]) for text in self.far[:_SHOWN])
        sentence = (
            f"Of {self.questions:,} real questions {len(self.far):,} ({share:.0%}) are near no row"
            f"{', such as ' + some if some else ''}; {self.unasked:,} of {self.rows:,} rows are "
            "near no question."
        )
        if share >= _WARN_FROM:
            sentence += " Add rows for what is really asked."
        return Finding("warn" if share >= _WARN_FROM else "good", "Relevance", sentence)


def relevance(examples: Sequence[Example], questions: Sequence[str]) -> Relevance:
    """How near rows and questions are; neither may be empty."""
    asked = [Example((Message("user", text), Message("assistant", ""))) for text in questions]
    cores = cores_of([*examples, *asked])
    rows, real = cores[: len(examples)], cores[len(examples) :]
    far = [
        text
        for text, (alike, _) in zip(questions, nearest(real, rows), strict=True)
        if alike < NEAR
    ]
    unasked = sum(alike < NEAR for alike, _ in nearest(rows, real))
    return Relevance(len(questions), tuple(far), len(examples), unasked)


def read_questions(path: Path) -> list[str]:
    """A question a line of a .txt file, or of each row of another file (prompt, question …). Raises
    DataError.
    """
    if path.suffix.lower() == ".txt":
        try:
            found = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}; give a text file in UTF-8") from error
    else:
        found = [_question(path, fields) for _, fields in rows_of(path, Reading())]
    if not (questions := [text for text in found if text]):
        raise DataError(f"{path} has no question; write one a line, or name the field 'question'")
    return questions


def question_of(fields: Mapping[str, object]) -> str:
    """What a row asks, by the usual names of such a field; empty where it has none of these."""
    said = (str(fields[name]).strip() for name in _NAMES if fields.get(name))
    return next(said, "")


def _question(path: Path, fields: object) -> str:
    if not isinstance(fields, dict):
        return ""
    if not (question := question_of(cast(dict[str, object], fields))):
        raise DataError(f"{path} has rows without a question; name the field one of {_NAMES}")
    return question
