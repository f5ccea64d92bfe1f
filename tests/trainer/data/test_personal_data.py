"""Every recogniser: what it must find, and what only looks alike."""

import pytest

from loragate.trainer.data.example import DataError
from loragate.trainer.data.personal_data import PersonalData
from support.training.examples import example

PERSONAL = PersonalData(("GB", "US", "DE", "FR"))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail jo.o'dell+x@mail.example.co.uk.", "Mail [EMAIL]."),
        ("+44 7700 900123 is mine", "[PHONE] is mine"),
        ("call 020 7946 0958, please", "call [PHONE], please"),
        ("(555) 010-4477", "[PHONE]"),
        ("0171 2345678 ab 9", "[PHONE] ab 9"),
        ("phone=02079460958", "phone=[PHONE]"),
        ("01.23.45.67.89 or 01 23 45 67 89", "[PHONE] or [PHONE]"),
        ("+44 20 7946 0958 / +49 171 2345678", "[PHONE] / [PHONE]"),
        ("On 03.04.2024 ring 0171/2345678", "On 03.04.2024 ring [PHONE]"),
        ("my order came, call 020 7946 0958 at 10:30", "my order came, call [PHONE] at 10:30"),
        ("020 7946 0958 - thanks", "[PHONE] - thanks"),
        ("card 4111 1111 1111 1111 till 12/29", "card [CARD] till 12/29"),
        ("5500-0000-0000-0004", "[CARD]"),
        ("371449635398431", "[CARD]"),
        ("to GB29 NWBK 6016 1331 9268 19 at once", "to [IBAN] at once"),
        ("to GB29 NWBK 6016 1331 9268 19 AT ONCE", "to [IBAN] AT ONCE"),
        ("de89370400440532013000", "[IBAN]"),
        ("SSN 536-90-4399", "SSN [ID]"),
        ("NHS 943 476 5870", "NHS [ID]"),
        ("Steuer-ID 36 574 261 809", "Steuer-ID [ID]"),
        ("2 95 10 99 126 111 93", "[ID]"),
        ("DNI 54362315-K", "DNI [ID]"),
        ("NIE X-2482300W", "NIE [ID]"),
        ("RCCMNL83S18D969H", "[ID]"),
        ("BSN: 111222333", "BSN: [ID]"),
        ("PESEL 44051401359", "PESEL [ID]"),
        ("390.533.447-05", "[ID]"),
        ("880320-0016", "[ID]"),
        ("131052-308T", "[ID]"),
        ("85.07.30-033.28", "[ID]"),
        ("756.9217.0769.85", "[ID]"),
        ("Aadhaar 2341 2341 2346", "Aadhaar [ID]"),
        ("11010519491231002X", "[ID]"),
    ],
)
def test_personal_data_are_masked(text: str, masked: str):
    assert PERSONAL.mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "me at example.com",
        "@handle and a@b",
        "4111 1111 1111 1112",  # Luhn
        "0000 0000 0000 0000",
        "GB28 NWBK 6016 1331 9268 19",  # mod 97
        "000-12-3456 is no SSN",
        "Steuer-ID 36 574 261 808",
        "54362315-L",
        "X-2482300V",
        "RCCMNL83S18D969I",
        "BSN 111222334",
        "111222333",  # a BSN only by a word beside it
        "PESEL 44051401358",
        "390.533.447-06",
        "880320-0018",
        "131052-308U",
        "85.07.30-033.29",
        "756.9217.0769.84",
        "Aadhaar 2341 2341 2347",
        "110105194912310021",
        "order 1234567890 of 2024-05-06 at 10:30 for £1,200.50",
        "reading 045231, error 32, 2021-2022",
        "83265 / 305 = 275.43397884615385",
        "4600 - 1286 + 4983 + 1010 - 3622 + 6644 - 1",
        "Solve 622x + 3751 - 3751 = 18679 - 3751",
        "calculate 821091117+4908374100427?",
        "x = 4111111111111111 * 2, y = 0171234567 + 1",
        'xyz0123456789"',
        "f_0123456789 and 0123456789abcdef",
        "3.14159265358979, 1,234,567,890, 12'345'678",
        "Am 01.02.2024 10:30 Uhr, bitte seien Sie zu Hause.",
        "zwischen 12.03.2024 und 15.03.2024 12:00",
        "from 2024-01-05 08:30:00 to 2024-01-06T09:00Z",
        "order 0123456789, order number: 07946095812, Auftrag Nr. 0171234567",
        "server 192.168.100.200, version 1.20.3.4",
        "$ 1 200 300, EUR 1.200.300,00",
        "F-2597",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str):
    assert PERSONAL.mask(text) == text


def test_a_number_is_masked_once_by_the_surest_recogniser():
    (found,) = PERSONAL.find("DE89 3704 0044 0532 0130 00")
    assert found.kind == "IBAN"


def test_what_was_asked_with_is_masked_in_question_and_answer():
    row = example("I am a@b.example", "You are A@b.example, thanks.")
    found = PERSONAL.in_row(row)
    assert [entity.what for entity in found.masked] == ["e-mail address"] * 2
    assert found.example == example("I am [EMAIL]", "You are [EMAIL], thanks.")
    assert (found.answers, found.kept) == (1, 0)


def test_what_only_an_answer_says_is_to_be_learnt():
    row = example("I smell gas!", "Leave the house and call 0800 111 999.")
    found = PERSONAL.in_row(row.with_system_prompt("Mail help@firm.example for more."))
    assert found.masked == ()
    assert found.example == row.with_system_prompt("Mail help@firm.example for more.")
    assert found.kept == 1


def test_what_is_allowed_stays_everywhere():
    personal = PersonalData(("GB",), allowed=("0800-111-999", "@firm.example"))
    row = example("I rang 0800 111 999, wrote to Help@firm.example and am on 020 7946 0958.")
    masked = "I rang 0800 111 999, wrote to Help@firm.example and am on [PHONE]."
    assert personal.in_row(row).example == example(masked)


def test_national_telephone_numbers_are_known_by_region():
    assert PersonalData(()).mask("ring 0171 2345678") == "ring 0171 2345678"
    assert PersonalData(("DE",)).mask("ring 0171 2345678") == "ring [PHONE]"


def test_a_number_that_fails_its_checksum_may_still_be_a_telephone_number():
    assert PERSONAL.mask("NHS 943 476 5871") == "NHS [PHONE]"


def test_a_country_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match="country 'UK' is unknown"):
        PersonalData(("UK",))
