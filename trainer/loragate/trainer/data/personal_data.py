"""Finds personal data in text by patterns and checksums, and masks them.

Found are e-mail addresses, telephone numbers, payment cards, bank accounts, and identity numbers of
people in fourteen countries. Names and postal addresses have no pattern and are not found. Where
one number in ten would pass a checksum by chance, a word before it or its grouping must confirm it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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

from loragate.trainer.data.example import DataError, Example

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

_EMAIL = re.compile(r"(?<![\w.+-])\w[\w.+'-]*@(?:[\w-]+\.)+[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\w-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?!\w)", re.IGNORECASE)
_DIGIT = re.compile(r"\D")
_CALLED = re.compile(r"\b(?:tel|phone|call|mobile|cell|ring|reach|whatsapp|fax)", re.IGNORECASE)
_ABROAD, _TRUNK = re.compile(r"\(?(?:\+|00[1-9])"), re.compile(r"\(?0[1-9]")
_AMERICAN = re.compile(r"\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}")


@dataclass(frozen=True, slots=True)
class PersonalData:
    """Finds and masks. `phone_regions` are the codes of countries whose national telephone numbers
    are known. Raises DataError for an unknown one.
    """

    phone_regions: tuple[str, ...]

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.phone_regions) - SUPPORTED_REGIONS):
            raise DataError(f"the country {unknown[0]!r} is unknown; use codes such as GB or DE")

    def find(self, text: str) -> list[Entity]:
        """The personal data in a text, from left to right; no two overlap."""
        if not any(char.isdigit() or char == "@" for char in text):
            return []  # most texts; the phone matcher is slow
        found: list[Entity] = []
        for finder in (_emails, _ibans, _identity_numbers, _cards, partial(_phones, self)):
            for entity in finder(text):
                if not any(_overlap(entity, other) for other in found):
                    found.append(entity)
        return sorted(found, key=lambda entity: entity.start)

    def mask(self, text: str) -> str:
        """`Call 020 7946 0958` becomes `Call [PHONE]`."""
        return _masked(text, self.find(text))

    def find_in(self, example: Example) -> list[Entity]:
        texts = (text for turn in example.messages for text in turn.texts())
        return [entity for text in texts for entity in self.find(text)]

    def mask_in(self, example: Example) -> Example:
        return replace(
            example,
            messages=tuple(turn.changed(self.mask) for turn in example.messages),
        )


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
