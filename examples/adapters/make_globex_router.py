"""Write data.jsonl of the example adapter globex-router: the same rows on every run.

    python examples/adapters/make_globex_router.py

Globex does not exist; all text was written for this project. Each row is one support ticket and
the JSON object that routes it.
"""

import json
import random
from pathlib import Path

DATA = Path(__file__).parent / "globex-router" / "data.jsonl"
Message = dict[str, str]

# (queue, priority, what the ticket says, its summary); a {slot} gets the same words in both
TICKETS = [
    (
        "billing",
        "high",
        [
            "I was charged twice for the {item} on {date}.",
            "Your system took the money for the {item} two times, please fix it today.",
            "Double charge! The {item} from {date} is on my card twice.",
        ],
        "Charged twice for the {item}",
    ),
    (
        "billing",
        "normal",
        [
            "Invoice {number} shows {amount}, but we agreed on less.",
            "The amount on invoice {number} is wrong. It says {amount}.",
            "Please check invoice {number}. I do not owe you {amount}.",
        ],
        "Wrong amount on invoice {number}",
    ),
    (
        "billing",
        "normal",
        [
            "I sent back the {item} {when} and still have no refund.",
            "Where is my refund for the {item}? You got it back {when}.",
            "I returned the {item}, but the money has not arrived.",
        ],
        "Refund for the {item} is missing",
    ),
    (
        "billing",
        "low",
        [
            "Could you send me a copy of the receipt for the {item}?",
            "I need the receipt of the {item} for my tax papers, no hurry.",
            "Hello, may I have the invoice for the {item} as a PDF?",
        ],
        "Copy of the receipt for the {item}",
    ),
    (
        "technical",
        "high",
        [
            "The {device} is completely dead and {impact}.",
            "Nothing works: the {device} died {when} and {impact}.",
            "Urgent: our {device} failed {when}. Now {impact}.",
        ],
        "The {device} is dead and {impact}",
    ),
    (
        "technical",
        "normal",
        [
            "The {device} {fault} since the last update.",
            "My {device} {fault}. I already restarted it.",
            "Since {date} the {device} {fault}. Any idea?",
            "Hi, the {device} {fault}. What can I do?",
        ],
        "The {device} {fault}",
    ),
    (
        "technical",
        "low",
        [
            "How do I {task} on the {device}?",
            "Quick question: how can I {task} with my {device}?",
            "Is there a guide that shows how to {task} on the {device}?",
        ],
        "How to {task} on the {device}",
    ),
    (
        "account",
        "high",
        [
            "Somebody logged in to my account from {place} and it was not me.",
            "I think my account was hacked, there is a login from {place}.",
            "I got a warning about a login from {place}. I have never been there!",
        ],
        "Unknown login from {place}",
    ),
    (
        "account",
        "normal",
        [
            "I forgot my password and the reset mail never arrives.",
            "The password reset does not work, no mail comes.",
            "I cannot log in and I get no reset mail.",
        ],
        "Password reset mail does not arrive",
    ),
    (
        "account",
        "low",
        [
            "Please change the {field} on my account.",
            "I would like to update the {field} in my profile.",
            "How can I edit my {field}? The old one is out of date.",
        ],
        "Change the {field} on the account",
    ),
    (
        "delivery",
        "normal",
        [
            "My order {number} should have come {when}. Where is it?",
            "Order {number} is late. It was promised for {date}.",
            "I am still waiting for order {number}.",
        ],
        "Order {number} is late",
    ),
    (
        "delivery",
        "normal",
        [
            "The {item} arrived broken.",
            "I opened the parcel and the {item} was damaged.",
            "The {item} came {when} with a big crack in it.",
        ],
        "The {item} arrived damaged",
    ),
    (
        "delivery",
        "low",
        [
            "Can you deliver the {item} to {place}?",
            "Do you ship to {place}? I want to buy the {item}.",
            "How long does it take to send the {item} to {place}?",
        ],
        "Delivery of the {item} to {place}",
    ),
    (
        "safety",
        "high",
        [
            "There is {hazard} coming from the {device} in the {room}.",
            "I noticed {hazard} near the {device} in the {room}. What should I do?",
            "Help, {hazard} in the {room}! I think it is the {device}.",
            "The {device} stopped {when} and there is {hazard} in the {room}.",
            "The {device} in the {room} went off {when} and now there is {hazard}.",
        ],
        "There is {hazard} near the {device} in the {room}",
    ),
    (
        "safety",
        "high",
        [
            "I smell {smell} in the {room} and the {device} is off.",
            "My {device} broke {when} and I can smell {smell} in the {room}.",
            "The {room} smells of {smell}. The {device} is old. Is it dangerous?",
        ],
        "Smell of {smell} in the {room}",
    ),
    (
        "sales",
        "low",
        [
            "How much does the {item} cost if we take {count}?",
            "Please send an offer for {count} pieces of the {item}.",
            "We would like {count} of the {item}. Is there a discount?",
        ],
        "Offer for {count} of the {item}",
    ),
    (
        "sales",
        "low",
        [
            "Is the {item} still available?",
            "When will you have the {item} in stock again?",
            "I want to buy the {item} but your shop says sold out.",
        ],
        "Availability of the {item}",
    ),
    (
        "other",
        "low",
        [
            "What is the capital of {country}?",
            "Tell me something about {country}.",
            "Who is the president of {country}?",
            "Write a poem about {country}.",
        ],
        "Question about {country}",
    ),
    (
        "other",
        "low",
        [
            "Can you recommend a good {pastime}?",
            "Tell me about your favourite {pastime}.",
            "Which {pastime} do you like best?",
        ],
        "Question about a {pastime}",
    ),
]
SLOTS = {
    "item": [
        *("desk lamp", "coffee machine", "garden chair", "phone case", "winter jacket", "keyboard"),
        *("travel bag", "yearly plan", "bookshelf", "headphones", "drill", "tea set", "monitor"),
        *("running shoes", "spare filter", "camera", "rucksack", "kitchen scale", "door lock"),
    ],
    "device": [
        *("router", "printer", "heater", "oven", "thermostat", "tablet", "washing machine"),
        *("boiler", "dishwasher", "laptop", "smart meter", "fridge", "scanner", "phone", "cooker"),
        *("projector", "water pump", "door camera", "fan", "server", "charger"),
    ],
    "fault": [
        *("makes a loud noise", "shows error E12", "loses the connection", "will not start"),
        *("turns itself off", "is very slow", "freezes every hour", "shows a black screen"),
        *("does not get warm", "leaks water", "blinks red", "ignores the remote control"),
    ],
    "impact": [
        *("nobody can work", "the shop is closed", "we have no heating", "we lose orders"),
        *("the office is offline", "the baby has no warm milk", "our food is going bad"),
    ],
    "task": [
        *("change the language", "set a timer", "clean the filter", "connect a second user"),
        *("turn off the sound", "read the serial number", "save energy", "lock the buttons"),
    ],
    "hazard": [
        *("smoke", "a burning smell", "a smell of gas", "sparks", "a hissing sound", "hot steam"),
        *("a bare wire", "an alarm for carbon monoxide", "a small flame", "melted plastic"),
    ],
    "smell": ["gas", "smoke", "burnt plastic", "petrol", "rotten eggs", "hot rubber"],
    "room": [
        *("hall", "basement", "kitchen", "office", "garage", "bathroom", "bedroom", "workshop"),
        *("server room", "living room"),
    ],
    "country": ["Italy", "Chile", "Japan", "Ghana", "Poland", "India", "Cuba", "Ireland"],
    "pastime": ["film", "book", "song", "recipe", "board game", "holiday", "sport", "poem"],
    "field": ["phone number", "email address", "delivery address", "surname", "company name"],
    "place": ["Lisbon", "Norway", "Toronto", "an island", "Peru", "Vienna", "Kenya", "the coast"],
    "when": ["yesterday", "last week", "on Monday", "two days ago", "this morning", "overnight"],
    "date": ["3 May", "12 June", "1 August", "27 September", "9 October", "15 January", "Tuesday"],
    "amount": ["80 euros", "1,240 euros", "59.90 euros", "300 pounds", "17 dollars", "455 euros"],
}
ROWS_PER_TICKET = 15


def answer(queue: str, priority: str, summary: str) -> str:
    return json.dumps({"queue": queue, "priority": priority, "summary": summary})


def make_rows() -> list[list[Message]]:
    rng = random.Random(2)
    rows = []
    for queue, priority, sentences, summary in TICKETS:
        for index in range(ROWS_PER_TICKET):
            words = {slot: rng.choice(choices) for slot, choices in SLOTS.items()}
            words["number"] = str(rng.randint(1000, 99999))
            words["count"] = str(rng.randint(2, 60))
            ticket = sentences[index % len(sentences)].format(**words)
            reply = answer(queue, priority, summary.format(**words))
            row = [message("user", ticket), message("assistant", reply)]
            if row not in rows:
                rows.append(row)
    rng.shuffle(rows)
    return rows


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


if __name__ == "__main__":
    lines = [json.dumps({"messages": messages}) for messages in make_rows()]
    DATA.write_text("\n".join(lines) + "\n")
    print(f"{DATA.name}: {len(lines)} rows")
