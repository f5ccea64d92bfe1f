"""Normalises the text of rows and drops rows by rules in a fixed order; every drop is recorded.

Normalising mends what is broken, not what is unusual: each mend has a name and can be left out.
Every row that was changed is recorded as those that were dropped are. Which rows stay depends on
their content, not on their order.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ftfy import TextFixerConfig, fix_text
from ftfy.fixes import fix_character_width
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from loragate.trainer.data.example import DataError, Example, flaw_of
from loragate.trainer.data.personal_data import PersonalData
from loragate.trainer.data.reading import Place, Read, Row
from loragate.trainer.data.settings import (
    DEFAULT_MENDS,
    MENDS,
    Cleaning,
    Mend,
    Track,
    untracked,
)
from loragate.trainer.data.similarity import (
    Alike,
    conflicts,
    exact_duplicates,
    near_duplicates,
    own_lines_of,
    same_answer,
    same_key,
)

# What people typed on purpose stays: HTML entities, quotes, ligatures and full-width characters.
_FIXES = TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    remove_terminal_escapes=False,
    normalization=None,
)
# Soft hyphens, zero-width spaces and joiners between letters, byte order marks, bidi controls. The
# joiner U+200D and U+200C stay: emoji and several scripts are written with them.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x85]")
_SPACES = re.compile(r"[^\S\n]+")
_GAP = re.compile(r"\S {2,}\S")
_BLANK_LINES = re.compile(r"\n{3,}")
UNSURE = "unsure"
# Probabilities by the model: "Internet down" is English with 0.06 and Danish with 0.07, a German
# sentence of ten words is German with 0.99 and English with less than 0.0001.
_SURE = 0.9
_RULED_OUT = 0.002
_FEWEST_LETTERS = 20
_MOST_COUNTED = 2_000  # rows whose languages the report counts
_MOST_FOR_LANGUAGE = 1_000  # characters
_NOT_WORDS = re.compile(r"[\W\d_]+")
# The rules in the order in which they are applied, with what each means to a reader.
RULES = {
    "bad_row": "could not be read",
    "rejected": "has an answer that people found bad",
    "empty": "had no question, no answer, or nothing at all",
    "length": "was too short to learn from, or longer than allowed",
    "language": "is written in another language",
    "personal_data": "held personal data, and such rows were to be dropped",
    "exact_duplicate": "says word for word what another row says",
    "conflict": "asks what another row asks, and is answered differently",
    "near_duplicate": "says nearly what another row says",
}
_SAMPLE = 240  # characters
_SHOWN_BEFORE, _SHOWN_AFTER = 30, 60  # characters of a text that was mended
_MOST_LABELS = 50
_ROWS_PER_LABEL = 5
_LONGEST_LABEL = 40  # characters; a longer answer that comes again is a stock phrase, no class


def normalise(example: Example, mends: Collection[Mend] = DEFAULT_MENDS) -> Example:
    """The example with every text mended."""
    return replace(
        example,
        messages=tuple(
            replace(
                message,
                content=normalise_text(message.content, mends),
                reasoning=normalise_text(message.reasoning, mends),
            )
            for message in example.messages
        ),
    )


def normalise_text(text: str, mends: Collection[Mend] = DEFAULT_MENDS) -> str:
    """The text with the mends applied, in the order of `MENDS`."""
    for mend in MENDS:
        if mend in mends:
            text = _MENDERS[mend](text)
    return text


def mends_of(before: str, after: str, mends: Collection[Mend]) -> list[Mend]:
    """Which of the mends made `after` of `before`."""
    found: list[Mend] = []
    text = before
    for mend in MENDS:
        if mend in mends and text != after and (mended := _MENDERS[mend](text)) != text:
            found.append(mend)
            text = mended
    return found


def _without_control(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def tidy_whitespace(text: str) -> str:
    """Single spaces, no spaces at the ends of lines, one empty line at most.

    Spaces that mean something stay: in indented text, as code and its completions are, and in
    tables, whose cells are divided by tabs or stand below each other.
    """
    lines = text.split("\n")
    if _is_indented(lines):
        return text
    if _is_table(text, lines):
        return "\n".join(line.rstrip(" ") for line in lines).strip("\n ")
    lines = [_SPACES.sub(" ", line).strip() for line in lines]
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def _is_indented(lines: Sequence[str]) -> bool:
    """Whether a line is indented below another one, or the first as code is; a paragraph that
    begins with a space is not.
    """
    if not any(line.strip() for line in lines):
        return False
    return lines[0].startswith(("    ", "\t")) or any(
        line[:1] in (" ", "\t") and line.strip() and before.strip()
        for before, line in pairwise(lines)
    )


def _is_table(text: str, lines: Sequence[str]) -> bool:
    tabbed = sum("\t" in line.strip() for line in lines)
    gaps = sum(_GAP.search(line.strip()) is not None for line in lines)
    return tabbed > 1 or gaps > 1 or (tabbed == 1 and " " not in text)


_MENDERS: Mapping[Mend, Callable[[str], str]] = {
    "mojibake": lambda text: text if text.isascii() else fix_text(text, _FIXES),
    "invisible": lambda text: text if text.isascii() else _INVISIBLE.sub("", text),
    "control": lambda text: _without_control(_LINE_ENDS.sub("\n", text)),
    "unicode": lambda text: unicodedata.normalize("NFC", text),
    "spaces": tidy_whitespace,
    "width": fix_character_width,
}


class Languages:
    """Identifies languages. Making one takes about a second, so share it."""

    def __init__(self) -> None:
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def of(self, text: str) -> str:
        """An ISO 639-1 code, or `UNSURE` where the text is short or below 0.9 in probability."""
        if _is_short(text):
            return UNSURE
        language, confidence = self._identifier.classify(text)
        return str(language) if float(confidence) >= _SURE else UNSURE

    def is_other(self, text: str, wanted: str) -> str:
        """The likeliest language, where `text` is surely not in `wanted`; else an empty string."""
        if _is_short(text):
            return ""
        ranked = self._identifier.rank(text)
        return str(ranked[0][0]) if dict(ranked)[wanted] < _RULED_OUT else ""

    def check_code(self, code: str) -> None:
        """Raises DataError for a code that the model does not know."""
        if code not in self._identifier.labels:
            raise DataError(
                f"the language {code!r} is unknown; use a code such as en, de, fr or ja"
            )


def _is_short(text: str) -> bool:
    return len(_NOT_WORDS.sub("", text)) < _FEWEST_LETTERS


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that was dropped. `sample` is its text, shortened, with personal data masked; `other`
    is the place of the row that it repeats or contradicts.
    """

    rule: str
    place: Place
    reason: str
    sample: str = ""
    other: Place | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "rule": self.rule,
            "file": self.place.file,
            "line": self.place.line,
            "reason": self.reason,
            "sample": self.sample,
            **({"other": str(self.other)} if self.other else {}),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A row that stayed, changed. `kind` is masked, mended or labelled, `what` says what was;
    `before` and `after` show the place, with personal data masked in both.
    """

    kind: str
    place: Place
    what: tuple[str, ...]
    after: str
    before: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "change": self.kind,
            "file": self.place.file,
            "line": self.place.line,
            "what": list(self.what),
            **({"before": self.before} if self.before else {}),
            "after": self.after,
        }


@dataclass(slots=True)
class Cleaned:
    """The rows that stayed, the drops, and counts of what was changed or found."""

    rows: list[Row] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    rows_read: int = 0
    normalised_rows: int = 0  # rows of which a character was changed
    masked: Counter[str] = field(default_factory=Counter)  # kinds of personal data, in pieces
    masked_rows: int = 0
    masked_answers: int = 0  # answers of which a piece was masked
    kept_in_answers: int = 0  # pieces that only answers have, which stay
    changes: list[Change] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    conflicts_kept: int = 0
    are_labels_found: bool = False  # answers were few enough to be taken for labels

    @property
    def examples(self) -> list[Example]:
        return [row.example for row in self.rows]

    def drops_by_rule(self) -> dict[str, list[Drop]]:
        """Each rule that dropped something, in the order of `RULES`."""
        found = {rule: [drop for drop in self.drops if drop.rule == rule] for rule in RULES}
        return {rule: drops for rule, drops in found.items() if drops}


def clean(read: Read, cleaning: Cleaning, track: Track = untracked) -> Cleaned:
    """Normalises, and applies every rule. Raises DataError for an unknown language or country."""
    personal = PersonalData(cleaning.phone_regions, cleaning.allowed)
    languages = Languages()
    if cleaning.language is not None:
        languages.check_code(cleaning.language)
    cleaned = Cleaned(rows_read=len(read.rows) + len(read.bad) + len(read.rejected))
    for place in read.rejected:
        cleaned.drops.append(Drop("rejected", place, "the answer was found bad"))
    for bad in read.bad:
        cleaned.drops.append(Drop("bad_row", bad.place, personal.mask(bad.reason)))
    for row in track(read.rows, description="Normalising text"):
        _take_sound(row, cleaned, cleaning, personal)
    _drop_other_languages(cleaned, cleaning, personal, languages)
    if cleaning.personal_data != "keep":
        _remove_personal_data(cleaned, cleaning, personal, track)
    _label(cleaned)
    _drop_repeats(cleaned, cleaning, personal, track)
    return cleaned


def _take_sound(row: Row, cleaned: Cleaned, cleaning: Cleaning, personal: PersonalData) -> None:
    """Normalises a row, and keeps it where it is complete and of an allowed length."""
    example = normalise(row.example, cleaning.mend)
    if example != row.example:
        cleaned.normalised_rows += 1
        cleaned.changes.append(_mended(row, example, cleaning.mend, personal))
    row = replace(row, example=example)
    if flaw := flaw_of(example.messages):
        cleaned.drops.append(_drop("empty", row, flaw, personal))
    elif flaw := _length_flaw(example, cleaning):
        cleaned.drops.append(_drop("length", row, flaw, personal))
    else:
        cleaned.rows.append(row)


def _mended(row: Row, after: Example, mends: Collection[Mend], personal: PersonalData) -> Change:
    """What was mended in a row, with the first place that changed."""
    what: dict[Mend, None] = {}
    shown: tuple[str, str] = ("", "")
    for one, other in zip(row.example.messages, after.messages, strict=True):
        for old, new in ((one.content, other.content), (one.reasoning, other.reasoning)):
            if old == new:
                continue
            what |= dict.fromkeys(mends_of(old, new, mends))
            if shown == ("", ""):
                shown = _around(old, new, personal)
    return Change("mended", row.place, tuple(what), shown[1], shown[0])


def _around(old: str, new: str, personal: PersonalData) -> tuple[str, str]:
    """The two texts near the first character that differs, as Python writes them."""
    # Masked first: half a telephone number would not be recognised.
    old, new = personal.mask(old), personal.mask(new)
    pairs = enumerate(zip(old, new, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(old), len(new)))
    start = max(0, at - _SHOWN_BEFORE)
    return ascii_ends(old[start : at + _SHOWN_AFTER]), ascii_ends(new[start : at + _SHOWN_AFTER])


def ascii_ends(text: str) -> str:
    """With line ends, tabs and what cannot be seen written out."""
    return "".join(
        char if char == " " or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def _drop_other_languages(
    cleaned: Cleaned, cleaning: Cleaning, personal: PersonalData, languages: Languages
) -> None:
    """Drops rows in another language. Lines that many rows share do not count, since an instruction
    may be in another one.
    """
    kept: list[Row] = []
    # To say what languages there are, some rows are enough.
    step = max(1, len(cleaned.rows) // _MOST_COUNTED)
    questions = own_lines_of(cleaned.examples)
    for number, (row, question) in enumerate(zip(cleaned.rows, questions, strict=True)):
        text = f"{question}\n{row.example.answer}"
        if cleaning.language and (other := languages.is_other(text, cleaning.language)):
            reason = f"the language is {other}, not {cleaning.language}"
            cleaned.drops.append(_drop("language", row, reason, personal))
        else:
            if number % step == 0:
                cleaned.languages[languages.of(text[:_MOST_FOR_LANGUAGE])] += 1
            kept.append(row)
    cleaned.rows = kept


def _remove_personal_data(
    cleaned: Cleaned, cleaning: Cleaning, personal: PersonalData, track: Track
) -> None:
    kept: list[Row] = []
    for row in track(cleaned.rows, description="Looking for personal data"):
        found = personal.in_row(row.example)
        cleaned.kept_in_answers += found.kept
        if not found.masked:
            kept.append(row)
        elif cleaning.personal_data == "mask":
            kinds = Counter(entity.what for entity in found.masked)
            cleaned.masked.update(kinds)
            cleaned.masked_rows += 1
            cleaned.masked_answers += found.answers
            cleaned.changes.append(
                Change("masked", row.place, tuple(sorted(kinds)), _sample(row.example, personal))
            )
            kept.append(replace(row, example=found.example))
        else:
            what = ", ".join(sorted({entity.what for entity in found.masked}))
            reason = f"there is personal data: {what}"
            cleaned.drops.append(_drop("personal_data", row, reason, personal))
    cleaned.rows = kept


def _drop(rule: str, row: Row, reason: str, personal: PersonalData) -> Drop:
    return Drop(rule, row.place, reason, _sample(row.example, personal))


def _length_flaw(example: Example, cleaning: Cleaning) -> str:
    question = sum(len(turn.content) for turn in example.messages if turn.role == "user")
    if question < cleaning.min_characters:
        return f"the question has {question} characters, fewer than {cleaning.min_characters}"
    size = sum(len(turn.text) + len(turn.reasoning) for turn in example.messages)
    if size > cleaning.max_characters:
        return f"the row has {size:,} characters, more than {cleaning.max_characters:,}"
    return ""


def _label(cleaned: Cleaned) -> None:
    """Takes answers for labels where no row has one, and they are few, short and come again."""
    if any(row.example.label is not None for row in cleaned.rows):
        _spell_labels_alike(cleaned)
        return
    answers = Counter(row.example.answer for row in cleaned.rows)
    is_few = 1 < len(answers) <= _MOST_LABELS
    comes_again = len(answers) * _ROWS_PER_LABEL <= len(cleaned.rows)
    if is_few and comes_again and max(map(len, answers)) <= _LONGEST_LABEL:
        cleaned.are_labels_found = True
        cleaned.rows = [
            replace(row, example=replace(row.example, label=row.example.answer))
            for row in cleaned.rows
        ]


def _spell_labels_alike(cleaned: Cleaned) -> None:
    """Gives labels that differ in case or spaces only the spelling that most rows have, and the
    answers that are those labels too.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for row in cleaned.rows:
        if row.example.label is not None:
            spellings[_label_key(row.example.label)][row.example.label] += 1
    usual = {
        key: min(found, key=lambda spelling: (-found[spelling], spelling))
        for key, found in spellings.items()
    }
    for number, row in enumerate(cleaned.rows):
        label = row.example.label
        if label is None:
            continue
        wanted = usual[_label_key(label)]
        last = row.example.messages[-1]
        answer = wanted if _label_key(last.content) == _label_key(label) else last.content
        if (label, last.content) == (wanted, answer):
            continue
        messages = (*row.example.messages[:-1], replace(last, content=answer))
        example = replace(row.example, label=wanted, messages=messages)
        before = label if label != wanted else last.content
        cleaned.changes.append(
            Change("labelled", row.place, ("spelling of the label",), wanted, before[:_SAMPLE])
        )
        cleaned.rows[number] = replace(row, example=example)


def _label_key(label: str) -> str:
    return same_key(label).casefold()


def _drop_repeats(
    cleaned: Cleaned, cleaning: Cleaning, personal: PersonalData, track: Track
) -> None:
    _drop_alike(cleaned, "exact_duplicate", exact_duplicates(cleaned.examples), personal)
    # Before near duplicates, of which one might be kept that another row contradicts.
    contradicting = conflicts(cleaned.examples)
    # In free text several answers are right; of two labels one is wrong.
    are_labels = any(row.example.label is not None for row in cleaned.rows)
    if cleaning.conflicts == "drop" or (cleaning.conflicts == "labels" and are_labels):
        _drop_conflicts(cleaned, contradicting, personal)
    else:
        cleaned.conflicts_kept = sum(len(rows) for rows in contradicting)
    if cleaning.near_duplicates == "drop":
        alike = near_duplicates(cleaned.examples, cleaning.similarity, track)
        _drop_alike(cleaned, "near_duplicate", alike, personal)


def _drop_alike(
    cleaned: Cleaned, rule: str, alike: Iterable[Alike], personal: PersonalData
) -> None:
    rows = cleaned.rows
    kept_by = {pair.dropped: pair.kept for pair in alike}
    for number, kept in sorted(kept_by.items()):
        other = rows[kept].place
        drop = _drop(rule, rows[number], f"as in {_from(rows[number].place, other)}", personal)
        cleaned.drops.append(replace(drop, other=other))
    cleaned.rows = [row for number, row in enumerate(rows) if number not in kept_by]


def _drop_conflicts(
    cleaned: Cleaned, contradicting: Sequence[Sequence[int]], personal: PersonalData
) -> None:
    rows = cleaned.rows
    for group in contradicting:
        for number in group:
            row = rows[number]
            other = next(
                rows[n].place for n in group if not same_answer(rows[n].example, row.example)
            )
            reason = f"answered differently in {_from(row.place, other)}"
            cleaned.drops.append(replace(_drop("conflict", row, reason, personal), other=other))
    gone = {number for group in contradicting for number in group}
    cleaned.rows = [row for number, row in enumerate(rows) if number not in gone]


def _from(place: Place, other: Place) -> str:
    """How `other` is called by a reader who is at `place`."""
    return f"line {other.line}" if other.file == place.file else str(other)


def _sample(example: Example, personal: PersonalData) -> str:
    said = [f"{turn.role}: {' '.join(turn.text.split())}" for turn in example.messages]
    # Masked before it is cut: half a telephone number would not be recognised, and so be shown.
    text = personal.mask(" | ".join(said))
    return text if len(text) <= _SAMPLE else text[: _SAMPLE - 1] + "…"
