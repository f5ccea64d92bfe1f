"""The settings of data preparation. Their defaults are also those of a run file's [data] and of the
options of `loragate data`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeVar, get_args

from loragate.trainer.data.example import DataError

FormatName = Literal["auto", "messages", "instruction", "prompt", "sharegpt"]
BadRows = Literal["refuse", "drop"]
PreferenceRule = Literal["refuse", "chosen"]
PersonalDataRule = Literal["mask", "drop", "keep"]
KeepOrDrop = Literal["drop", "keep"]
# "labels": drop where rows have labels, of which only one can be right.
ConflictRule = Literal["labels", "drop", "keep"]
# What can be mended in a text, in this order. By default only what nobody types on purpose.
Mend = Literal["mojibake", "invisible", "control", "unicode", "spaces", "width"]
MENDS: tuple[Mend, ...] = get_args(Mend)
DEFAULT_MENDS: tuple[Mend, ...] = ("mojibake", "invisible", "control", "unicode", "spaces")

T = TypeVar("T")

SIMILAR = 0.8  # Jaccard, of five-character pieces; from here on rows are near


class Track(Protocol):
    """Yields a sequence and shows the progress; `rich.progress.Progress.track` is one."""

    def __call__(
        self, sequence: Iterable[T], *, description: str, total: float | None = None
    ) -> Iterable[T]: ...


def untracked(sequence: Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """A `Track` that shows nothing."""
    return sequence


def _check_similarity(value: float) -> None:
    if not 0.5 <= value <= 1:
        raise DataError(
            f"a similarity of {value} cannot be used; give 0.5 (rows are soon called near) to 1 "
            "(only equal ones), 0.8 is usual"
        )


def read_mends(text: str) -> tuple[Mend, ...]:
    """Mends by name, with commas between; "none" is none. Raises DataError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    if unknown := sorted(set(names) - set(MENDS)):
        raise DataError(
            f"the mend {unknown[0]!r} is unknown; use some of {', '.join(MENDS)}, or none"
        )
    return tuple(mend for mend in MENDS if mend in names)


def read_fields(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of `NAME=OWN`. Raises DataError where there is no sign between, or no name."""
    pairs: list[tuple[str, str]] = []
    for text in texts:
        name, sign, own = (part.strip() for part in text.partition("="))
        if not (name and sign and own):
            raise DataError(f"{text!r} names no field; write it as completion=category")
        pairs.append((name, own))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read."""

    format: FormatName = "auto"
    # A row that cannot be read: refuse the data, or drop the row and say so in the report.
    bad_rows: BadRows = "refuse"
    encoding: str = "utf-8"  # a byte order mark in the file goes before it
    label_field: str = "label"  # the field of a row with the exact answer's class
    group_field: str = "group"  # rows with the same value stay in one split
    # Pairs of a format's field and the file's own name for it, as ("completion", "category").
    fields: tuple[tuple[str, str], ...] = ()
    # Rows with good and bad answers: refuse them, or learn the good ("chosen") ones alone.
    preferences: PreferenceRule = "refuse"


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What is masked and what is dropped."""

    language: str | None = None  # ISO 639-1; rows surely in another language are dropped
    personal_data: PersonalDataRule = "mask"
    # Where telephone numbers are written without their country's code.
    phone_regions: tuple[str, ...] = ("GB", "US", "DE", "FR")
    # Addresses and numbers that are never masked, such as the firm's own; @firm.example: all there.
    allowed: tuple[str, ...] = ()
    mend: tuple[Mend, ...] = DEFAULT_MENDS
    min_characters: int = 2  # of the question, and 1 of the answer
    max_characters: int = 20_000  # of the whole conversation
    near_duplicates: KeepOrDrop = "drop"
    similarity: float = SIMILAR
    # Rows with the same question and different answers: nobody can tell which is right.
    conflicts: ConflictRule = "labels"

    def __post_init__(self) -> None:
        _check_similarity(self.similarity)


@dataclass(frozen=True, slots=True)
class Splitting:
    """The shares of validation and test, and the similarity from which rows stay in one split."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    similarity: float = SIMILAR

    def __post_init__(self) -> None:
        _check_similarity(self.similarity)
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise DataError(
                f"the shares of validation ({self.validation}) and test ({self.test}) must be "
                "above 0 and leave something to train on; 0.1 each is usual"
            )


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """The limits for findings."""

    max_tokens: int = 1024  # the run's length limit, for the share of tokens that it would cut
    # Rows below which data are refused, warned about, and noted.
    refuse_below: int = 10
    warn_below: int = 1_000
    note_below: int = 5_000


@dataclass(frozen=True, slots=True)
class PreparationSettings:
    """The settings of all steps."""

    reading: Reading = Reading()
    cleaning: Cleaning = Cleaning()
    splitting: Splitting = Splitting()
    quality: QualityLimits = QualityLimits()

    def to_json(self) -> dict[str, object]:
        return asdict(self)
