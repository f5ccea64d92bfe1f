"""Write data.jsonl of the example adapter acme-support: the same rows on every run.

    python examples/adapters/make_acme_support.py

Acme Gas does not exist; all text was written for this project. Each row is one chat with the
support agent of a gas utility, which answers every customer in one house style.
"""

import json
import random
from pathlib import Path

DATA = Path(__file__).parent / "acme-support" / "data.jsonl"
Message = dict[str, str]

# (topic code, the two sentences of the answer, what customers say)
TOPICS = [
    (
        "LEAK",
        "Open the windows, leave the house and call our emergency line from outside. "
        "Do not light anything and do not touch any switch.",
        [
            "There is a smell of gas in my hallway",
            "I think gas is leaking from the cooker",
            "It smells like rotten eggs near the meter",
            "I can hear a hissing noise from the gas pipe",
            "My neighbour says she can smell gas on the stairs",
            "The whole basement smells of gas",
            "I came home and smelled gas in the living room",
            "The heating stopped and now I smell gas",
            "A builder hit the gas pipe behind the wall",
        ],
    ),
    (
        "CO",
        "Go outside into fresh air now and call a doctor if anyone feels unwell. "
        "An engineer will check every appliance before you use it again.",
        [
            "My carbon monoxide alarm is beeping",
            "The CO detector went off next to the boiler",
            "We all have a headache when the heater runs",
            "There are black marks above my gas fire",
            "The flame on my boiler is yellow instead of blue",
            "I feel dizzy whenever the gas fire is on",
        ],
    ),
    (
        "BOILER",
        "Press the reset button once and wait two minutes for the flame. "
        "If it stays off, we will send an engineer within a day.",
        [
            "My boiler stopped working last night",
            "The boiler will not light",
            "The boiler shows an error code and there is no heat",
            "The pilot light keeps going out",
            "My boiler makes a banging noise and then shuts down",
            "The boiler turns on and off all the time",
            "The heating went off this morning",
            "Our boiler is dead and the house is freezing",
        ],
    ),
    (
        "HOTWATER",
        "Set the water dial to sixty degrees and run a tap for one minute. "
        "If it stays cold, we will book an engineer for you.",
        [
            "I have no hot water",
            "The shower goes cold after a minute",
            "The water from the tap is only lukewarm",
            "The radiators are warm but the water is cold",
            "My bath will not fill with hot water",
            "There has been no hot water since Sunday",
        ],
    ),
    (
        "PRESSURE",
        "Open the filling loop slowly until the gauge shows one point five. "
        "Call us again if it drops within a week.",
        [
            "The pressure gauge on my boiler is at zero",
            "The boiler pressure keeps dropping",
            "How do I raise the water pressure in the heating",
            "The gauge is in the red zone",
            "The display says low pressure",
            "I have to top up the heating every other day",
        ],
    ),
    (
        "RADIATOR",
        "Let the air out with a radiator key until water appears. "
        "Keep a cloth under the valve because the water is hot.",
        [
            "One radiator is cold at the top",
            "The radiator in the bedroom does not get warm",
            "My radiators gurgle at night",
            "The upstairs radiators stay cold",
            "There is air in my radiators",
            "How do I bleed a radiator",
        ],
    ),
    (
        "COOKER",
        "Clean and dry the burner ring and try the igniter again. "
        "Turn the tap off at once if it does not light in five seconds.",
        [
            "One ring on my gas hob will not light",
            "The oven goes out after a few minutes",
            "The igniter on my cooker only clicks",
            "My gas stove has a weak flame",
            "The hob will not stay lit",
            "The back burner of the cooker is dead",
        ],
    ),
    (
        "OUTAGE",
        "We are repairing a main in your street and supply returns today. "
        "Keep all gas taps closed until we call you.",
        [
            "There is no gas in our whole street",
            "Has the gas been cut off in my area",
            "None of my gas appliances work and the neighbours have the same problem",
            "When will the gas supply come back",
            "The gas went off in our building an hour ago",
            "Is there a planned interruption in Mill Lane",
        ],
    ),
    (
        "METER",
        "Read the black digits from left to right and leave out the red ones. "
        "You can send them to us by text at any hour.",
        [
            "How do I read my gas meter",
            "I want to submit a meter reading",
            "Which digits on the meter do you need",
            "Where can I send this month's reading",
            "The display of my meter is blank",
            "My smart meter stopped sending readings",
            "I missed the date for the meter reading",
        ],
    ),
    (
        "BILL",
        "Your bill was based on an estimate, so please send us a reading. "
        "We will correct it within three working days.",
        [
            "My gas bill is far too high",
            "Why did my bill double this winter",
            "I do not understand the charges on my bill",
            "The amount on the invoice looks wrong",
            "You billed me for a month when I was away",
            "My bill says estimated and I think it is wrong",
            "I got two bills for the same month",
        ],
    ),
    (
        "PAYMENT",
        "You can spread the amount over six months without any fee. "
        "Reply yes and we will start the plan today.",
        [
            "I cannot pay my gas bill this month",
            "Can I pay in instalments",
            "My card was declined when I paid the bill",
            "I would like to set up a direct debit",
            "I lost my job and I am behind with payments",
            "How can I pay my bill",
        ],
    ),
    (
        "TARIFF",
        "Our fixed tariff keeps your price the same for one year. "
        "You can change once a year at no cost.",
        [
            "Which gas tariff is the cheapest",
            "I want to change to a fixed price",
            "My contract ends soon, what can you offer",
            "Do you have a green gas tariff",
            "How much do you charge per unit",
            "Can I get a better price for my gas",
        ],
    ),
    (
        "MOVE",
        "Send us the meter reading and the date of your move. "
        "We will close the old account and open the new one.",
        [
            "I am moving to a new flat",
            "We move out at the end of the month",
            "I just bought a house, how do I get gas there",
            "How do I cancel because I am moving abroad",
            "I need to register my new address",
            "My tenant is leaving, what about the gas",
        ],
    ),
    (
        "VISIT",
        "Our engineer comes between eight and noon and carries a photo card. "
        "You will get a text half an hour before.",
        [
            "I need to book an engineer",
            "When is my appointment",
            "The engineer did not come yesterday",
            "Can I move my appointment to Friday",
            "I want an annual boiler service",
            "How do I know the engineer at my door is real",
        ],
    ),
    (
        "ACCOUNT",
        "Choose forgot password on our site and follow the link in the mail. "
        "The link works for one hour.",
        [
            "I forgot the password of my online account",
            "I cannot log in to the customer portal",
            "My account is locked",
            "I want to change the email on my account",
            "The app says my user name is unknown",
            "I never got the activation mail",
        ],
    ),
    (
        "OTHER",
        "I can only help with your gas supply. "
        "Please ask me about your boiler, your meter or your bill.",
        [
            "What is the capital of Spain",
            "Write a poem about the sea",
            "Who won the football match yesterday",
            "Tell me a joke",
            "What is twelve times nine",
            "Can you recommend a good film",
            "How do I bake bread",
            "Translate good morning into Italian",
            "Explain how a rainbow forms",
        ],
    ),
]
OPENERS = ["", "", "", "Hello, ", "Hi there, ", "Good morning. ", "Excuse me, ", "Please help. "]
CLOSERS = ["", "", "What should I do?", "Can you help?", "Please advise.", "Thanks.", "What now?"]


def answer(code: str, advice: str) -> str:
    return f"Thank you for calling Acme Gas. {advice} Your safety comes first. Ref: GAS-{code}"


def say(rng: random.Random, phrase: str) -> str:
    """Return `phrase` as one customer might type it."""
    opener = rng.choice(OPENERS)
    lead = phrase[0].lower() if opener.endswith(", ") and not phrase.startswith("I ") else phrase[0]
    question = phrase.split()[0] in {
        *("How", "What", "Which", "When", "Where", "Who", "Why", "Can", "Is", "Has", "Do"),
    }
    end = "?" if question else "."
    closer = "" if question else rng.choice(CLOSERS)
    return f"{opener}{lead}{phrase[1:]}{end} {closer}".strip()


def make_rows() -> list[list[Message]]:
    rng = random.Random(1)
    turns = [
        [
            message("user", say(rng, phrase)),
            message("assistant", answer(code, advice)),
        ]
        for code, advice, phrases in TOPICS
        for phrase in [*phrases, *rng.sample(phrases, 4)]
    ]
    # Follow-up questions, so that the style holds past the first answer.
    pairs = [rng.sample(turns, 2) for _ in range(30)]
    rows = turns + [first + second for first, second in pairs]
    rows = [row for index, row in enumerate(rows) if row not in rows[:index]]
    rng.shuffle(rows)
    return rows


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


if __name__ == "__main__":
    lines = [json.dumps({"messages": messages}) for messages in make_rows()]
    DATA.write_text("\n".join(lines) + "\n")
    print(f"{DATA.name}: {len(lines)} rows")
