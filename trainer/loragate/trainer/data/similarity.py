"""The similarity of rows, and which rows repeat or contradict others.

Two measures of likeness, both of the sets of five-character pieces of two texts, without case and
punctuation: the Jaccard index, and containment, which is the share of the shorter text's pieces
that the longer one has. Containment finds a question that was only dressed up.

What many rows share says nothing about a row: lines, beginnings and endings that come again (an
instruction, a system prompt) are left out before rows are compared, and for splits greetings and
closings too (`cores_of`).
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from loragate.adapters.rendering.turns import SYSTEM_ROLES
from loragate.trainer.data.example import Example, row_digest
from loragate.trainer.data.pieces import PIECE, SHORTEST_CONTAINED, PieceSets
from loragate.trainer.data.settings import Track, untracked

# Signs between words, which tell no two questions apart. Those of sums, currencies, paths and
# programming languages do, and so do emoji, so they stay.
_NOT_WORDS = re.compile(
    r"""[\s_.,;:!?"'`´()\[\]{}<>…|~^\\¡¿·•§–—“”„‟‘’‚‹›«»。，、；：！？（）「」『』【】《》〈〉・]+"""
)
_HYPHEN = re.compile(r"(?<=[^\W\d_])-+(?=[^\W\d_])|(?<!\S)-+(?!\S|\s*\d)")
# A line is shared by many rows from this share of all on, and from this count.
_SHARED_FROM = 0.05
_SHARED_FROM_ROWS = 10
# A beginning that so many share is an instruction, however little follows it.
_INSTRUCTION_FROM = 0.5
_SHORTEST_INSTRUCTION = 30  # characters; a shorter beginning is one only where most rows have it
# A first or last sentence that comes again before or after different texts is a courtesy.
_COURTESY_FROM = 0.01
_COURTESY_FROM_ROWS = 5
_COURTESIES = 4  # at either end of a text
_LONGEST_COURTESY = 12  # words
_LONGEST_NAME = 3  # words; of whom a letter is to
_FEWEST_LETTERS = 12  # that must be left of a text, or else it is compared whole
_SHORT_ANSWER = 3  # words; in an answer this short a single letter may be what counts
_FRAGMENT_END = re.compile(r"[.,;:!?]+(?=\s|$)|[\n。，；：！？]+")
_OPENINGS = re.compile(
    r"(?:hi|hello|hey|hiya|dear|good (?:morning|afternoon|evening|day)|morning|afternoon|evening|"
    r"greetings|to whom it may concern|excuse me|sorry to (?:bother|trouble)|quick question|"
    r"i (?:just )?have a (?:quick )?question|i hope .*|hope you.*|please help|"
    r"hallo|guten (?:tag|morgen|abend)|sehr geehrte\w*|liebe[rs]?|moin|servus|"
    r"bonjour|bonsoir|salut|madame|monsieur|cher|chère|"
    r"hola|buen(?:os|as) (?:d[ií]as|tardes|noches)|estimad\w+|buongiorno|buonasera|ciao|gentile|"
    r"ol[áa]|bom dia|boa (?:tarde|noite)|prezad\w+|goedemorgen|goedemiddag|beste|geachte|"
    r"hej|god (?:morgon|dag|kväll)|dzień dobry|cześć|witam|merhaba|здравствуйте|привет|добрый день|"
    r"你好|您好|こんにちは|안녕하세요|مرحبا|नमस्ते)(?!\w)"
)
_CLOSINGS = re.compile(
    r"(?:(?:many |kind |best |warm )?(?:thanks|regards)|thank you|thx|cheers|ta|best|"
    r"(?:best )?wishes|yours (?:sincerely|faithfully|truly)|sincerely|please (?:help|advise|reply)|"
    r"can you help(?: me)?|could you (?:please )?(?:help|look into it)|what (?:should|can) i do|"
    r"any (?:help|news|advice)|i would be (?:glad|grateful)|looking forward|"
    r"danke|vielen dank|besten dank|bitte (?:helfen|um)|(?:mit )?(?:freundlichen|besten) grüßen?|"
    r"viele grüße|mfg|lg|merci|cordialement|bien à vous|gracias|saludos|un saludo|atentamente|"
    r"grazie|cordiali saluti|saluti|obrigad[oa]|atenciosamente|bedankt|met vriendelijke groet\w*|"
    r"tack|hälsningar|dziękuję|pozdrawiam|teşekkürler|спасибо|с уважением|谢谢|ありがとう\w*|"
    r"감사합니다|شكرا|धन्यवाद)(?!\w)"
)


def comparable(text: str) -> str:
    """The text's words and telling signs in lower case, with single spaces, for likeness only."""
    return _NOT_WORDS.sub(" ", _HYPHEN.sub(" ", text.casefold())).strip()


def same_key(text: str) -> str:
    """Equal for texts that are the same but for Unicode's normal form and spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def questions_of(examples: Sequence[Example]) -> list[str]:
    """Each row's turns before the answer, comparable, without the lines, beginnings and endings
    that many rows share.
    """
    texts = _without_shared_beginning(own_lines_of(examples), _SHORTEST_INSTRUCTION)
    reversed_texts = [text[::-1] for text in texts]
    reversed_texts = _without_shared_beginning(reversed_texts, _SHORTEST_INSTRUCTION)
    return [text[::-1] for text in reversed_texts]


def own_lines_of(examples: Sequence[Example]) -> list[str]:
    """Each row's turns before the answer, comparable, without the lines that many rows share."""
    lines = [_lines(example.prompt) for example in examples]
    rows_with = Counter(line for row in lines for line in set(row))
    many = max(_SHARED_FROM_ROWS, _SHARED_FROM * len(examples))
    return [" ".join(_own(row, rows_with, many)) for row in lines]


def cores_of(examples: Sequence[Example]) -> list[str]:
    """What each row asks, comparable: `questions_of` without greetings and closings, and without
    first and last sentences that come again in rows that ask something else.
    """
    lines = [[line.strip() for line in example.prompt.splitlines()] for example in examples]
    rows_with = Counter(line for row in lines for line in set(row))
    many = max(_SHARED_FROM_ROWS, _SHARED_FROM * len(examples))
    rows = [_fragments("\n".join(_own(row, rows_with, many))) for row in lines]
    rows = _without_courtesies(rows)
    rows = [row[::-1] for row in _without_courtesies([row[::-1] for row in rows], at_end=True)]
    texts = [
        " ".join(row) or comparable(example.prompt) or example.prompt
        for row, example in zip(rows, examples, strict=True)
    ]
    texts = _without_shared_beginning(texts)
    return [text[::-1] for text in _without_shared_beginning([text[::-1] for text in texts])]


def own_core(example: Example) -> str:
    """What the row asks, without greetings and closings, whatever other rows there are: the same
    text now and in any later data.
    """
    asked = "\n".join(turn.text for turn in example.messages[:-1] if turn.role not in SYSTEM_ROLES)
    row = _without_courtesies([_fragments(asked)])[0]
    row = _without_courtesies([row[::-1]], at_end=True)[0][::-1]
    return " ".join(row) or asked


def pieces(text: str) -> frozenset[str]:
    """The set of five-character pieces of a text; a shorter text is one piece."""
    return frozenset(text[at : at + PIECE] for at in range(max(1, len(text) - PIECE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of common elements, from 0 to 1. One of the sets must not be empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """The Jaccard index, or the share of the smaller set that the larger one has, where the smaller
    one is large enough for that to be no chance.
    """
    common, smaller = len(one & other), min(len(one), len(other))
    if smaller >= SHORTEST_CONTAINED:
        return common / smaller
    return common / (len(one) + len(other) - common)


def _lines(text: str) -> list[str]:
    # A row without a single letter or digit ("?!") is compared as it is.
    return [line for raw in text.splitlines() if (line := comparable(raw))] or [text]


def _own(row: Iterable[str], rows_with: Counter[str], many: float) -> list[str]:
    row = list(row)
    return [line for line in row if rows_with[line] < many] or row


def _fragments(text: str) -> list[str]:
    return [found for part in _FRAGMENT_END.split(text) if (found := comparable(part))]


def _without_courtesies(rows: list[list[str]], *, at_end: bool = False) -> list[list[str]]:
    """Without the first fragments of rows that are courtesies; with `at_end` the rows' fragments
    are in reversed order, and closings are looked for.
    """
    listed = _CLOSINGS if at_end else _OPENINGS
    many = max(_COURTESY_FROM_ROWS, _COURTESY_FROM * len(rows))
    for _ in range(_COURTESIES):
        after: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if len(row) > 1 and len(after[row[0]]) < many:
                after[row[0]].add(row[1])
        changed = False
        for number, row in enumerate(rows):
            if len(row) < 2 or len(row[0].split()) > _LONGEST_COURTESY:
                continue
            match = listed.match(row[0])
            is_courtesy = (
                (match is not None and _is_all(row[0][match.end() :], at_end=at_end))
                or len(after[row[0]]) >= many
                or (at_end and len(row[0].split()) <= 2 and not any(map(str.isdigit, row[0])))
            )
            if is_courtesy and _letters(" ".join(row[1:])) >= _FEWEST_LETTERS:
                rows[number] = row[1:]
                changed = True
        if not changed:
            break
    return [_without_opening_words(row, listed) for row in rows] if not at_end else rows


def _is_all(rest: str, *, at_end: bool) -> bool:
    """Whether what follows a greeting's first words still belongs to it, as a name does."""
    return at_end or len(rest.split()) <= _LONGEST_NAME


def _without_opening_words(row: list[str], listed: re.Pattern[str]) -> list[str]:
    """Without a greeting that no sign divides from the rest, as in `hello my bill is wrong`."""
    match = listed.match(row[0]) if row else None
    if match is None:
        return row
    rest = row[0][match.end() :].strip()
    return [rest, *row[1:]] if _letters(rest) >= _FEWEST_LETTERS else row


def _letters(text: str) -> int:
    """Letters, of which one in a script without spaces counts for three."""
    return sum(3 if "\u3040" <= char <= "\u9fff" else char.isalpha() for char in text)


def _without_shared_beginning(texts: list[str], shortest: int = 1) -> list[str]:
    """Each text without its longest beginning that many texts have, whole words of it; `shortest`
    characters at least, or any that most texts have.

    Texts with the same beginning are neighbours once sorted, so that what `many` neighbours share
    is what the first and the last of them share: no step compares all pairs.
    """
    many = int(max(_SHARED_FROM_ROWS, _SHARED_FROM * len(texts)))
    most = max(many, int(_INSTRUCTION_FROM * len(texts)))
    if len(texts) < many:
        return texts
    distinct = sorted(set(texts))
    order = sorted(range(len(texts)), key=texts.__getitem__)
    shared = _longest_shared(texts, order, many)
    by_most = _longest_shared(texts, order, most) if len(texts) >= most else [0] * len(texts)
    if len(distinct) < many:
        return texts  # the same few texts again and again are no beginning
    found: list[str] = []
    for text, length, instruction in zip(texts, shared, by_most, strict=True):
        rest = _after(text, length if length >= shortest else 0)
        if length < shortest or _letters(rest) < _FEWEST_LETTERS:
            rest = _after(text, instruction)
        found.append(rest if any(map(str.isalnum, rest)) else text)
    return found


def _after(text: str, length: int) -> str:
    """The text from the last word on that begins within the first `length` characters."""
    if length < len(text) and length and text[length - 1] != " ":
        is_spaced = " " in text[:length]
        length = text.rfind(" ", 0, length) + 1 if is_spaced or text[length] != " " else length
    return text[length:].strip()


def _longest_shared(texts: list[str], order: list[int], many: int) -> list[int]:
    """For each text the length of the longest beginning that `many` texts have."""
    reach = np.zeros(len(order), dtype=np.int64)
    for at in range(len(order) - many + 1):
        reach[at] = _common(texts[order[at]], texts[order[at + many - 1]])
    longest = np.zeros(len(order), dtype=np.int64)
    # A text at `at` is in the windows that begin at `at - many + 1` to `at`.
    padded = np.concatenate([np.zeros(many - 1, dtype=np.int64), reach])
    block = np.lib.stride_tricks.sliding_window_view(padded, many)
    for at in range(0, len(order), 4096):
        longest[at : at + 4096] = block[at : at + 4096].max(axis=1)
    found = [0] * len(texts)
    for at, number in enumerate(order):
        found[number] = int(longest[at])
    return found


def _common(one: str, other: str) -> int:
    """The length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class Alike:
    """The index of a row to drop, and that of the row which it repeats."""

    kept: int
    dropped: int


def near_pairs(texts: Sequence[str], similarity: float) -> Iterator[tuple[int, int]]:
    """Yields index pairs, the smaller first, of texts with at least this Jaccard index: all pairs,
    of which there are very many where many texts are equal. See `links`.
    """
    same: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        same[text].append(number)
    numbers = list(same.values())
    for equal in numbers:
        yield from combinations(equal, 2)
    for one, other in PieceSets.of(list(same)).near(similarity, contained=False):
        for pair in product(numbers[one], numbers[other]):
            yield min(pair), max(pair)


def links(
    texts: Sequence[str],
    similarity: float,
    track: Track = untracked,
    *,
    contained: bool = False,
) -> Iterator[tuple[int, int]]:
    """Yields index pairs, the smaller first, that join all texts with at least this similarity;
    with `contained` also those of which one has that share of the other's pieces.

    Of equal texts each is paired with the first only.
    """
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        if (same := first.setdefault(text, number)) != number:
            yield same, number
    numbers = list(first.values())
    sets = PieceSets.of(list(first))
    for one, other in sets.near(similarity, track, contained=contained):
        pair = numbers[one], numbers[other]
        yield min(pair), max(pair)


def exact_duplicates(examples: Sequence[Example]) -> list[Alike]:
    """Rows with the same answer to the same question, but for the question's case, spaces and
    sentence marks.
    """
    first: dict[tuple[str, ...], int] = {}
    found: list[Alike] = []
    for number in preference(examples):
        example = examples[number]
        asked = tuple(
            f"{turn.role} {comparable(turn.text) or turn.text}" for turn in example.messages[:-1]
        )
        # The answer's case, spaces and marks are part of what is learnt.
        said = (*asked, unicodedata.normalize("NFC", example.answer.strip()))
        if (kept := first.setdefault(said, number)) != number:
            found.append(Alike(kept, number))
    return found


def near_duplicates(
    examples: Sequence[Example], similarity: float, track: Track = untracked
) -> list[Alike]:
    """Rows whose question and answer are both near those of another row, which is kept.

    A row is compared with kept rows only, so that of a chain of similar rows more than one stays.
    """
    questions = questions_of(examples)
    near_questions = _neighbours(links(_distinct(questions), similarity, track))
    rows = _rows_by_question(examples, questions)
    # Only where questions meet do answers matter, and most questions meet no other.
    met = [
        answer
        for question, answers in enumerate(rows)
        if question in near_questions or len(answers) > 1
        for answer in answers
        if len(answer[1].split()) > _SHORT_ANSWER
    ]
    answers = list(dict.fromkeys(answer for _, answer in met))
    near_answers: dict[str, set[str]] = defaultdict(set)
    for one, other in links(answers, similarity, track):
        near_answers[answers[one]].add(answers[other])
        near_answers[answers[other]].add(answers[one])
    numbers = {text: number for number, text in enumerate(_distinct(questions))}
    kept_by: dict[int, int] = {}
    for number in preference(examples):
        if number in kept_by:
            continue
        label, answer = examples[number].label, _plain_answer(examples[number])
        question = numbers[questions[number]]
        for near in (question, *near_questions.get(question, ())):
            for said in _alike_answers(rows[near], label, answer, near_answers):
                for other in rows[near][said]:
                    if other != number and other not in kept_by:
                        kept_by[other] = number
                # All but the kept row are gone: none of them is looked at again.
                rows[near][said] = [number] if number in rows[near][said] else []
    return [Alike(kept, dropped) for dropped, kept in sorted(kept_by.items())]


Answered = tuple[str | None, str]  # a row's label and plain answer


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _neighbours(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    near: dict[int, list[int]] = defaultdict(list)
    for one, other in pairs:
        near[one].append(other)
        near[other].append(one)
    return dict(near)


def _rows_by_question(
    examples: Sequence[Example], questions: Sequence[str]
) -> list[dict[Answered, list[int]]]:
    """For each distinct question the rows that ask it, by label and answer."""
    rows: dict[str, dict[Answered, list[int]]] = {text: {} for text in questions}
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        answered = example.label, _plain_answer(example)
        rows[question].setdefault(answered, []).append(number)
    return list(rows.values())


def _alike_answers(
    rows: dict[Answered, list[int]],
    label: str | None,
    answer: str,
    near_answers: dict[str, set[str]],
) -> list[Answered]:
    near = near_answers.get(answer, set())
    if len(near) < len(rows):
        return [said for text in (answer, *near) if (said := (label, text)) in rows]
    return [said for said in rows if said[0] == label and (said[1] == answer or said[1] in near)]


def conflicts(examples: Sequence[Example]) -> list[list[int]]:
    """Groups of rows that ask the same and are answered differently."""
    asked: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        key = tuple(f"{turn.role} {same_key(turn.text)}" for turn in example.messages[:-1])
        asked[key].append(number)
    return [
        rows for rows in asked.values() if len({_plain_answer(examples[row]) for row in rows}) > 1
    ]


def preference(examples: Sequence[Example]) -> list[int]:
    """All rows' indices in the order in which to keep them: the longest prompt first, and never by
    the order of the rows.
    """
    return sorted(
        range(len(examples)),
        key=lambda row: (-len(examples[row].prompt), row_digest(examples[row])),
    )


def same_answer(one: Example, other: Example) -> bool:
    """Whether two answers differ in case and punctuation at most."""
    return _plain_answer(one) == _plain_answer(other)


def _plain_answer(example: Example) -> str:
    return comparable(example.answer) or example.answer
