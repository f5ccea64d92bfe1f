"""Finds personal data in text by patterns and checksums, and masks them.

Found are e-mail addresses, telephone numbers, payment cards, bank accounts, and identity numbers of
people in fourteen countries. Names and postal addresses have no pattern and are not found. Where
one number in ten would pass a checksum by chance, a word before it or its grouping must confirm it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType

from phonenumbers import (
    SUPPORTED_REGIONS,
    Leniency,
    PhoneNumber,
    PhoneNumberMatcher,
    is_valid_number,
)
from stdnum import iban, luhn
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.se import personnummer
from stdnum.us import ssn

from loragate.trainer.data.example import DataError, Example, Message

_WRITERS = ("user", "tool")
_CONTEXT = 40  # characters before a number in which a word can say what it is


@dataclass(frozen=True, slots=True)
class Entity:
    """A piece of text that is personal data, from `start` to `end` in characters. `kind` is what it
    is masked with, as in `[EMAIL]`; `what` is for people.
    """

    start: int
    end: int
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class _Identity:
    """A country's identity number: its pattern, its check, and words that must stand before it."""

    what: str
    shape: re.Pattern[str]
    check: ModuleType
    context: re.Pattern[str] | None = None

    def find(self, text: str) -> Iterator[Entity]:
        for match in self.shape.finditer(text):
            before = text[max(0, match.start() - _CONTEXT) : match.start()]
            if self.context is not None and not self.context.search(before):
                continue
            if self.check.is_valid(match.group()):
                yield Entity(match.start(), match.end(), "ID", self.what)


def _identity(what: str, shape: str, check: ModuleType, context: str = "") -> _Identity:
    return _Identity(
        what,
        re.compile(rf"(?<![\w-])(?:{shape})(?![\w-])", re.IGNORECASE),
        check,
        re.compile(rf"\b(?:{context})", re.IGNORECASE) if context else None,
    )


_IDENTITIES = (
    _identity("US social security number", r"\d{3}-\d{2}-\d{4}", ssn),
    _identity("British NHS number", r"\d{3}[ -]?\d{3}[ -]?\d{4}", nhs, r"nhs"),
    _identity("German tax number", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", idnr,
              r"steuer|id-?nr|tax|identifikationsn"),
    _identity("French NIR", r"[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", nir),
    _identity("Spanish DNI", r"\d{8}-?[A-Z]", dni),
    _identity("Spanish NIE", r"[XYZ]-?\d{7}-?[A-Z]", nie),
    _identity("Italian tax code", r"[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]",
              codicefiscale),
    _identity("Dutch BSN", r"\d{4}\.?\d{2}\.?\d{3}", bsn, r"bsn|burgerservice|sofi"),
    _identity("Polish PESEL", r"\d{11}", pesel, r"pesel"),
    _identity("Brazilian CPF", r"\d{3}\.\d{3}\.\d{3}-\d{2}", cpf),
    _identity("Brazilian CPF", r"\d{11}", cpf, r"cpf"),
    _identity("Swedish personal number", r"(?:\d{2})?\d{6}[-+]\d{4}", personnummer),
    _identity("Finnish personal code", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]", hetu),
    _identity("Belgian national number", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", nn),
    _identity("Swiss AHV number", r"756\.?\d{4}\.?\d{4}\.?\d{2}", ahv),
    _identity("Indian Aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", aadhaar, r"aadhaa?r|uid"),
    _identity("Chinese identity number", r"\d{17}[\dX]", ric),
)  # fmt: skip

# What is no number of a person, whatever its digits: a date, a time, an IP address or version, a
# decimal fraction, thousands in groups, a price. Phone numbers in groups of two ("01.02.03.04.05")
# or with a leading 0 ("0171.2345678") are none of these.
_NO_NUMBERS = re.compile(
    r"""(?<![\w./-])(?:
      (?:19|20)\d\d([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?![\d]|[-/.]\d)
    | (?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|1[0-2])\2(?:(?:19|20)\d\d|\d\d)(?!\d|[-/.]\d)
    | (?:0?[1-9]|1[0-2])([-/.])(?:0?[1-9]|[12]\d|3[01])\3(?:19|20)\d\d(?!\d|[-/.]\d)
    | (?:[01]?\d|2[0-4])[:.h][0-5]\d(?::[0-5]\d)?(?=\s*(?:uhr|h\b|am\b|pm\b|o'clock))
    | (?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d(?:[.,]\d+)?)?(?![\d:])
    | \d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d)
    | (?:0|[1-9]\d*)[.,]\d{3,}(?!\d|[.,]\d)
    | \d{1,3}(?:[,.']\d{3})+(?:[.,]\d+)?(?!\d|[.,'-]\d)
    )
    | [$€£¥₹]\s?\d[\d.,' ]*\d
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ISO_TIME = re.compile(
    r"(?:19|20)\d\d-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"
)
# A word before a number that says that it is a thing's.
_OF_A_THING = re.compile(
    r"(?:order|ticket|invoice|receipt|reference|ref|case|claim|contract|customer|account|tracking|"
    r"parcel|shipment|booking|reservation|serial|part|article|item|product|sku|isbn|ean|upc|model|"
    r"version|build|error|code|id|meter|reading|bestell\w*|auftrag\w*|rechnung\w*|kunden\w*|"
    r"vertrag\w*|sendung\w*|artikel\w*|zähler\w*|commande|facture|colis|contrat|dossier|pedido|"
    r"factura|contrato|ordine|fattura|bestelling|factuur)"
    r"[\s-]*(?:number|numbers|no|nr|num|nummer|numéro|número|numero|code|id|is|was)?[\s.:#=°]*$",
    re.IGNORECASE,
)
_BEFORE_OPERATOR = re.compile(
    r"(?:[*×÷^%]|[\d)a-z]\s*\+|(?:[\d)]|\b[a-z])\s*=|\s[-−–]\s)\s*$", re.IGNORECASE
)
_AFTER_OPERATOR = re.compile(
    r"\s*(?:[*×÷^]|\+\s*(?:\d|\(|[a-z]\b)|/\s*\d|=\s*[\d(x?]"
    r"|[-−–]\s+\(?(?:\d+|[a-z]\b)\s*(?:[-+*/=)?.]|$))",
    re.IGNORECASE,
)
_DIVIDED = re.compile(r"[\d)]\s*/\s*$")
_INNER_OPERATOR = re.compile(r"\d\s+[-−–+]\s+\d")


_EMAIL = re.compile(r"(?<![\w.+-])\w[\w.+'-]*@(?:[\w-]+\.)+[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\w.,-])[2-6](?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?!\w)", re.IGNORECASE)
_DIGIT = re.compile(r"\D")
_CALLED = re.compile(r"\b(?:tel|phone|call|mobile|cell|ring|reach|whatsapp|fax)", re.IGNORECASE)
_ABROAD, _TRUNK = re.compile(r"\(?(?:\+|00[1-9])"), re.compile(r"\(?0[1-9]")
_AMERICAN = re.compile(r"\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}")


@dataclass(frozen=True, slots=True)
class PersonalData:
    """Finds and masks. `phone_regions` are the codes of countries whose national telephone numbers
    are known. Raises DataError for an unknown one. `allowed` are addresses and numbers that are no
    secret, such as a firm's own, or `@firm.example` for all addresses there.
    """

    phone_regions: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    _allowed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.phone_regions) - SUPPORTED_REGIONS):
            raise DataError(f"the country {unknown[0]!r} is unknown; use codes such as GB or DE")
        object.__setattr__(self, "_allowed", frozenset(map(_plain, self.allowed)))

    def find(self, text: str) -> list[Entity]:
        """The personal data in a text, from left to right; no two overlap."""
        if not any(char.isdigit() or char == "@" for char in text):
            return []  # most texts; the phone matcher is slow
        numbers = _without_things(text)
        found: list[Entity] = []
        for finder, said in (
            (_emails, text),
            (_ibans, text),
            (_identity_numbers, numbers),
            (_cards, numbers),
            (partial(_phones, self), numbers),
        ):
            if finder is not _emails and not any(map(str.isdigit, said)):
                continue
            for entity in finder(said):
                if not any(_overlap(entity, other) for other in found):
                    found.append(entity)
        return sorted(
            (entity for entity in found if not self._is_allowed(text[entity.start : entity.end])),
            key=lambda entity: entity.start,
        )

    def _is_allowed(self, text: str) -> bool:
        said = _plain(text)
        return said in self._allowed or "@" + said.rpartition("@")[2] in self._allowed

    def mask(self, text: str) -> str:
        """`Call 020 7946 0958` becomes `Call [PHONE]`."""
        return _masked(text, self.find(text))

    def in_row(self, example: Example) -> "InRow":
        """What is found in a row, and the row with it masked.

        What people and tools wrote is masked. In answers and system prompts only what also stands
        in what they wrote: an answer's own number, as that of a hotline, is what is to be learnt.
        """
        finder = _Finder(self)
        written = {
            _plain(text[entity.start : entity.end])
            for turn in example.messages
            if turn.role in _WRITERS
            for text in turn.texts()
            for entity in finder.find(text)
        }
        masked: list[Entity] = []
        messages: list[Message] = []
        answers = kept = 0
        for turn in example.messages:
            is_writer = turn.role in _WRITERS
            before = len(masked)

            def mask(text: str, *, is_writer: bool = is_writer) -> str:
                found = [
                    entity
                    for entity in finder.find(text)
                    if is_writer or _plain(text[entity.start : entity.end]) in written
                ]
                masked.extend(found)
                return _masked(text, found)

            messages.append(turn.changed(mask))
            if turn.role == "assistant":
                answers += len(masked) > before
                kept += sum(len(finder.find(text)) for text in turn.texts()) - len(masked) + before
        if not masked:
            return InRow((), example, 0, kept)
        return InRow(tuple(masked), replace(example, messages=tuple(messages)), answers, kept)


@dataclass(frozen=True, slots=True)
class InRow:
    """What was `masked` in a row, and the `example` that is left. `answers` of its answers were
    changed; `kept` pieces in answers were not, since nobody asked with them.
    """

    masked: tuple[Entity, ...]
    example: Example
    answers: int
    kept: int


class _Finder:
    """Looks into each text once."""

    def __init__(self, personal: "PersonalData") -> None:
        self._personal = personal
        self._found: dict[str, list[Entity]] = {}

    def find(self, text: str) -> list[Entity]:
        found = self._found.get(text)
        if found is None:
            found = self._found[text] = self._personal.find(text)
        return found


def _plain(text: str) -> str:
    """Equal for one number or address in different writings."""
    text = text.casefold().strip()
    return text if "@" in text else "".join(char for char in text if char.isalnum() or char == "+")


def _without_things(text: str) -> str:
    """With dates, times, prices, fractions and numbers that are computed with blotted out, in the
    same length.
    """
    for pattern in (_ISO_TIME, _NO_NUMBERS):
        text = pattern.sub(lambda match: "|" * len(match.group()), text)
    return text


def _is_of_a_thing(text: str, start: int, end: int) -> bool:
    """Whether a number is computed with, is part of a word, or is named as a thing's number."""
    before, after = text[max(0, start - _CONTEXT) : start], text[end : end + _CONTEXT]
    number = text[start:end]
    if before[-1:].isalnum() or before.endswith("_") or after[:1].isalnum() or after[:1] == "_":
        return True
    if number.startswith("+") and re.search(r"[\d)a-z]\s*$", before, re.IGNORECASE):
        is_sum = re.search(r"(?:\d|\)|\b[a-z]|\d[a-z])\s*$", before, re.IGNORECASE) is not None
        if is_sum or _INNER_OPERATOR.search(number):
            return True
    # Two numbers in groups with a bar between them are two telephones.
    if " " not in number and not number.startswith(("+", "0")) and _DIVIDED.search(before):
        return True
    if _BEFORE_OPERATOR.search(before) or _AFTER_OPERATOR.match(after):
        return True
    return not number.startswith("+") and _OF_A_THING.search(before) is not None


def _masked(text: str, entities: Iterable[Entity]) -> str:
    pieces, end = [], 0
    for entity in entities:
        pieces += [text[end : entity.start], f"[{entity.kind}]"]
        end = entity.end
    return "".join([*pieces, text[end:]])


def _overlap(one: Entity, other: Entity) -> bool:
    return one.start < other.end and other.start < one.end


def _emails(text: str) -> Iterator[Entity]:
    for match in _EMAIL.finditer(text):
        yield Entity(match.start(), match.end(), "EMAIL", "e-mail address")


def _ibans(text: str) -> Iterator[Entity]:
    """The pattern also matches words that follow, so the longest part that is a valid IBAN is
    taken.
    """
    for match in _IBAN.finditer(text):
        candidate = match.group()
        ends = (end for end in range(len(candidate), 14, -1) if _ends_a_word(candidate, end))
        end = next((end for end in ends if iban.is_valid(candidate[:end])), None)
        if end is not None:
            yield Entity(match.start(), match.start() + end, "IBAN", "bank account (IBAN)")


def _ends_a_word(text: str, end: int) -> bool:
    return text[end - 1].isalnum() and not text[end : end + 1].isalnum()


def _identity_numbers(text: str) -> Iterator[Entity]:
    for identity in _IDENTITIES:
        yield from identity.find(text)


def _cards(text: str) -> Iterator[Entity]:
    for match in _CARD.finditer(text):
        digits = _DIGIT.sub("", match.group())
        if _is_of_a_thing(text, match.start(), match.end()):
            continue
        if len(set(digits)) > 1 and luhn.is_valid(digits):
            yield Entity(match.start(), match.end(), "CARD", "payment card")


def _phones(personal: PersonalData, text: str) -> Iterator[Entity]:
    """Numbers that could be dialled and are written as people write them.

    A bare run of digits is more often an order's number; one with a country's code, a trunk 0 or
    American groups is a telephone's, even where the country has given it to nobody.
    """
    seen: set[tuple[int, int]] = set()
    for region in (None, *personal.phone_regions):
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.POSSIBLE):
            span = (match.start, match.end)
            before = text[max(0, match.start - _CONTEXT) : match.start]
            if _is_of_a_thing(text, *span):
                continue
            if span not in seen and _is_written_as_phone(match.raw_string, match.number, before):
                seen.add(span)
                yield Entity(*span, "PHONE", "telephone number")


def _is_written_as_phone(raw: str, number: PhoneNumber, before: str) -> bool:
    digits = _DIGIT.sub("", raw)
    if _ABROAD.match(raw):
        return len(digits) >= 8
    if _TRUNK.match(raw):
        return 9 <= len(digits) <= 12
    if _AMERICAN.fullmatch(raw):
        return True
    return is_valid_number(number) and _CALLED.search(before) is not None
