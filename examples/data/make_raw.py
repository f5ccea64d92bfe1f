"""Writes the raw example data, and `planted.json`, which says what was planted where.

    python examples/data/make_raw.py [FOLDER]

`tickets.csv` (instruction, input, output) sorts messages of customers into six queues.
`house_style.jsonl` (messages) and `house_style_chats.jsonl` (ShareGPT) answer in a house style. The
same seed writes the same bytes. Everything is invented: the telephone numbers are of ranges kept
for fiction, the cards, accounts and identity numbers are published test numbers or made from them.
"""

import csv
import io
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from planted_words import (
    BAD_CSV,
    BAD_JSONL,
    FOREIGN,
    LONG_STORY,
    MOJIBAKE,
    OLDER,
    PERSONAL,
    UNTIDY,
)
from style_words import FOLLOW_UPS, SIGN_OFF, SUBJECTS
from ticket_words import CLOSINGS, FRAMES, NAMES, OPENINGS, QUEUES, SLOTS

SEED = 20
TICKETS_PER_QUEUE = 168
STYLE_ROWS, STYLE_CHATS = 300, 110
# No two rows that are not planted may come nearer than this (five-character pieces, Jaccard).
FARTHEST = 0.7
INSTRUCTION = "Which queue: billing, outage, meter, moving, contract or complaint?"
TICKETS, STYLE, CHATS = "tickets.csv", "house_style.jsonl", "house_style_chats.jsonl"


@dataclass(frozen=True)
class Ticket:
    """A row of tickets.csv. `kind` and `of` say that it is planted, and on which ticket."""

    text: str
    queue: str
    customer: str
    kind: str = ""
    of: "Ticket | None" = None


@dataclass
class Sheet:
    """What was planted: `kind`, `file`, `line`, and for a repeat the line that it repeats."""

    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, kind: str, file: str, line: int, of: int | None = None) -> None:
        self.rows.append({"kind": kind, "file": file, "line": line, **({"of": of} if of else {})})


class Speech:
    """Sentences from frames, no two of them near each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._said: list[str] = []

    def fill(self, frame: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda slot: self._word(slot.group(1)), frame)

    def is_new(self, text: str) -> bool:
        """Whether nothing near was said, in which case it is said now."""
        if any(similarity(text, other) >= FARTHEST for other in self._said):
            return False
        self._said.append(text)
        return True

    def _word(self, slot: str) -> str:
        draw = self.random
        match slot.rstrip("2"):
            case "amount":
                return f"{draw.randint(80, 640)}.{draw.randint(0, 99):02}"
            case "small":
                return str(draw.randint(4, 79))
            case "day":
                return f"{draw.randint(4, 20)}th"
            case "count":
                return str(draw.randint(2, 9))
            case "number":
                return str(draw.randint(1, 180))
            case "reading":
                return f"{draw.randint(1000, 98000):05}"
            case "account":
                return f"F-{draw.randint(1000, 9999)}"
            case "name":
                return draw.choice(NAMES)
            case _:
                return draw.choice(SLOTS[slot if slot in SLOTS else slot.rstrip("2")])


def similarity(one: str, other: str) -> float:
    first, second = pieces(one), pieces(other)
    common = len(first & second)
    return common / (len(first) + len(second) - common)


@cache
def pieces(text: str) -> frozenset[str]:
    plain = re.sub(r"[\W_]+", " ", text.casefold()).strip()
    return frozenset(plain[at : at + 5] for at in range(max(1, len(plain) - 4)))


def tickets(speech: Speech) -> list[Ticket]:
    found = [Ticket(text, queue, "") for queue in QUEUES for text in _messages(speech, queue)]
    for queue, text in OLDER:
        assert speech.is_new(text), text
        found.append(Ticket(text, queue, "", kind="association"))
    speech.random.shuffle(found)
    customers = _customers(speech.random)
    return [replace(ticket, customer=next(customers)) for ticket in found]


def _messages(speech: Speech, queue: str) -> Iterator[str]:
    for number in range(TICKETS_PER_QUEUE):
        frame = FRAMES[queue][number % len(FRAMES[queue])]
        text = _message(speech, frame)
        while not speech.is_new(text):
            text = _message(speech, frame)
        yield text


def _message(speech: Speech, frame: str) -> str:
    draw = speech.random
    opening, closing = speech.fill(draw.choice(OPENINGS)), speech.fill(draw.choice(CLOSINGS))
    body = speech.fill(frame)
    if not opening or opening.endswith("."):
        body = body[0].upper() + body[1:]
    body = body if body.endswith("?") else f"{body}."
    text = " ".join(part for part in (opening, body, closing) if part)
    match draw.random():
        case chance if chance < 0.12:
            return text.lower().replace("'", "")
        case chance if chance < 0.18:
            return text.rstrip(".").replace(",", "")
        case chance if chance < 0.24 and closing:
            return text.replace(f" {closing}", f"\n{closing}")
        case _:
            return text


def _customers(draw: random.Random) -> Iterator[str]:
    """One to three messages each."""
    number = 4000
    while True:
        number += draw.randint(1, 5)
        yield from [f"C{number}"] * draw.choice((1, 1, 1, 2, 2, 3))


def plant_tickets(found: list[Ticket], speech: Speech) -> list[Ticket]:
    """Adds what cleaning is to find, at random places. Each planted row has its own original."""
    draw = speech.random
    plain = [ticket for ticket in found if not ticket.kind and "\n" not in ticket.text]
    originals = iter(draw.sample([t for t in plain if len(t.text) > 70], 60))
    planted: list[Ticket] = []
    for number in range(12):
        one = next(originals)
        text = one.text.upper() if number % 3 == 0 else f"  {one.text}  "
        planted.append(Ticket(text if number % 2 else one.text, one.queue, "C9000", "exact", one))
    for number in range(16):
        one = next(originals)
        text = _nearly(one.text, number, draw)
        assert similarity(text, one.text) > 0.82, text
        planted.append(Ticket(text, one.queue, f"C91{number:02}", "near", one))
    for number in range(6):
        one = next(originals)
        other = QUEUES[(QUEUES.index(one.queue) + 1) % len(QUEUES)]
        planted.append(Ticket(one.text, other, f"C92{number:02}", "conflict", one))
    for number, (queue, text) in enumerate(MOJIBAKE):
        broken = text.encode().decode("cp1252")
        planted.append(Ticket(broken, queue, f"C93{number:02}", "mojibake"))
    for number, (queue, text) in enumerate(UNTIDY):
        planted.append(Ticket(text, queue, f"C94{number:02}", "untidy"))
    for number, (_, queue, text) in enumerate(PERSONAL):
        planted.append(Ticket(text, queue, f"C95{number:02}", "personal"))
    for number, (queue, text) in enumerate(FOREIGN):
        planted.append(Ticket(text, queue, f"C96{number:02}", "language"))
    planted += [
        Ticket("", "billing", "C9701", "empty"),
        Ticket("  \t ", "", "C9702", "empty"),
        Ticket("The lamp in the hall hums since you changed the fuse box.", "", "C9703", "empty"),
        Ticket(LONG_STORY, "complaint", "C9704", "length"),
    ]
    for ticket in planted:
        if ticket.kind not in ("exact", "near", "conflict", "empty", "length"):
            assert speech.is_new(ticket.text), ticket.text
    mixed = [*found, *planted]
    draw.shuffle(mixed)
    return mixed


def _nearly(text: str, number: int, draw: random.Random) -> str:
    """A small change, as people make it who send something twice."""
    words = text.split(" ")
    match number % 4:
        case 0:
            return f"{text} Thx"
        case 1:
            at = draw.randrange(len(words))
            return " ".join([*words[:at], words[at], *words[at:]])
        case 2:
            at = max(range(len(words)), key=lambda at: len(words[at]))
            return " ".join([*words[:at], words[at][:-2] + words[at][-1], *words[at + 1 :]])
        case _:
            return " ".join(words[1:] if len(words[0]) < 5 else words[:-1])


def write_tickets(path: Path, found: Sequence[Ticket], sheet: Sheet) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["instruction", "input", "output", "customer", "received"])
    lines: dict[int, int] = {}
    bad = iter(BAD_CSV)
    line = 2
    for number, ticket in enumerate(found):
        if number % 150 == 75 and (broken := next(bad, None)):
            text.write(f"{broken}\n")
            sheet.add("bad", TICKETS, line)
            line += 1
        lines[id(ticket)] = line
        day = f"2026-{number % 9 + 1:02}-{number % 28 + 1:02}"
        writer.writerow([INSTRUCTION if ticket.text.strip() else "", ticket.text, ticket.queue,
                         ticket.customer, day])  # fmt: skip
        line += 1 + ticket.text.count("\n")
    for ticket in found:
        if ticket.kind:
            of = lines[id(ticket.of)] if ticket.of else None
            sheet.add(ticket.kind, TICKETS, lines[id(ticket)], of)
    path.write_text(text.getvalue(), encoding="utf-8")


def style_rows(speech: Speech, count: int, turns: int) -> list[list[tuple[str, str]]]:
    """Conversations: a question and its answer, once or twice."""
    draw = speech.random
    subjects = list(SUBJECTS.values())
    found: list[list[tuple[str, str]]] = []
    while len(found) < count:
        questions, said_back, steps, promises = subjects[len(found) % len(subjects)]
        question = _message(speech, draw.choice(questions))
        if not speech.is_new(question):
            continue
        answer = f"{said_back} {draw.choice(steps)} {draw.choice(promises)} {SIGN_OFF}"
        talk = [(question, answer)]
        if turns > 1:
            asked, back, ends = draw.choice(FOLLOW_UPS)
            talk.append((asked[0].upper() + asked[1:], f"{back} {draw.choice(ends)} {SIGN_OFF}"))
        found.append(talk)
    return found


def write_style(path: Path, talks: Sequence[list[tuple[str, str]]], sheet: Sheet) -> None:
    bad = iter(BAD_JSONL)
    lines: list[bytes] = []
    for number, talk in enumerate(talks):
        if number % 40 == 20 and (broken := next(bad, None)):
            lines.append(broken)
            sheet.add("bad", path.name, len(lines))
        turns = [
            {"role": role, "content": text}
            for question, answer in talk
            for role, text in (("user", question), ("assistant", answer))
        ]
        lines.append(_json({"messages": turns}))
        if number in (33, 177):
            sheet.add("exact", path.name, len(lines) + 1, of=len(lines))
            lines.append(lines[-1])
    path.write_bytes(b"\n".join(lines) + b"\n")


def write_chats(path: Path, talks: Sequence[list[tuple[str, str]]], sheet: Sheet) -> None:
    lines: list[bytes] = []
    for number, talk in enumerate(talks):
        turns = [
            {"from": speaker, "value": text}
            for question, answer in talk
            for speaker, text in (("human", question), ("gpt", answer))
        ]
        if number in (50, 90):
            turns = turns[:-1]  # one-sided: the last question has no answer
            sheet.add("empty", path.name, len(lines) + 1)
        lines.append(_json({"id": f"chat-{number:03}", "conversations": turns}))
    path.write_bytes(b"\n".join(lines) + b"\n")


def _json(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sheet, speech = Sheet(), Speech(SEED)
    found = plant_tickets(tickets(speech), speech)
    write_tickets(folder / TICKETS, found, sheet)
    write_style(folder / STYLE, style_rows(speech, STYLE_ROWS, 1), sheet)
    write_chats(folder / CHATS, style_rows(speech, STYLE_CHATS, 2), sheet)
    (folder / "planted.json").write_text(
        json.dumps(
            {
                "seed": SEED,
                "instruction": INSTRUCTION,
                "group_field": "customer",
                "language": "en",
                "secrets": [secret for secret, _, _ in PERSONAL],
                "planted": sorted(sheet.rows, key=lambda row: (str(row["file"]), row["line"])),
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
